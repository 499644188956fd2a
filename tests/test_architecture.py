"""The laws of form and layering, checked on the whole tree: docs/architecture.md, executable.

A new file under native/ belongs into a layer of C_LAYERS first; then its includes are checked.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import source_rules as rules

ROOT = Path(__file__).resolve().parent.parent


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What a function of (state, input, now) may include of the system: nothing that waits, reads a
# clock, opens or prints.
PURE_HEADERS = words(
    """assert.h endian.h inttypes.h limits.h stdalign.h stdatomic.h stdbool.h stddef.h stdint.h
    stdlib.h string.h sys/mman.h"""
)
CLOCK_AND_IO_CALLS = words(
    """clock_gettime dlk_now_ns gettimeofday time usleep nanosleep sleep read write recv send printf
    fprintf open close poll epoll_wait getenv"""
)
ALLOCATING_CALLS = words("malloc calloc realloc aligned_alloc posix_memalign mmap strdup")
IMPURE_MODULES = words(
    """asyncio multiprocessing os random secrets select selectors signal socket ssl subprocess
    threading time"""
)


@dataclass(frozen=True)
class CLayer:
    """Files (globs under native/), the layers they may include besides their own, purity."""

    files: tuple[str, ...]
    above: frozenset[str]
    pure: bool = False


def _layer(files: str, above: str = "", pure: bool = False) -> CLayer:
    return CLayer(tuple(files.split()), words(above), pure)


C_LAYERS = {
    "abi": _layer("dlock_abi.h abi_verbs.h abi_client.h abi_bench.h abi_check.c text.c", pure=True),
    "rules": _layer("rules.[ch]", "abi", pure=True),
    "heap": _layer("heap.[ch]", "abi", pure=True),
    "engine": _layer("engine*.[ch]", "abi rules heap", pure=True),
    "codec": _layer("codec*.[ch]", "abi", pure=True),
    "ring": _layer("ring*.[ch]", "abi", pure=True),
    "adaptive": _layer("adaptive.[ch]", "abi", pure=True),
    "machine": _layer("clock.[ch] overload.c signals.c", "abi adaptive"),
    "transport": _layer("transport*.[ch]", "abi adaptive machine"),
    "verbs": _layer("verbs*.[ch]", "abi adaptive machine transport connection"),
    "plane": _layer("plane*.[ch]", "abi engine codec ring adaptive machine transport verbs"),
    "connection": _layer("connection*.[ch]", "abi"),
    "book": _layer("client_book*.[ch]", "abi codec heap", pure=True),
    "client": _layer(
        "client*.[ch] keeper.[ch]",
        "abi codec heap adaptive machine transport connection book verbs",
    ),
    "bench": _layer("bench*.[ch]", "abi engine adaptive machine"),
}


@dataclass(frozen=True)
class PythonRule:
    """Which modules the rule is for, what they may not import, and the exceptions to that."""

    modules: tuple[str, ...]
    banned: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    excused: tuple[str, ...] = ()


def names_of_dlock() -> list[str]:
    """What `import dlock` offers: __all__ of the package."""
    tree = ast.parse((ROOT / "dlock" / "__init__.py").read_text(encoding="utf-8"))
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return [f"dlock.{name}" for name in names]


# What the doors, the storage adapter and the command line may use of dlock.
PUBLIC = (
    "=dlock",
    *names_of_dlock(),
    "dlock.admin",
    "dlock.address",
    "dlock.aio",
    "dlock.dclient",
    "dlock.dserver",
    "dlock.durable",
    "dlock.errors",
    "dlock.linear",
    "dlock.rdma",
    "dlock.server",
    "dlock.types",
)

PURE = tuple(
    f"dlock.control.{name}*" for name in ("messages", "fields", "codec", "registry", "roster")
)
MIRROR = ("dlock.dclient", "dlock._mirror*")
API = (
    *("dlock.client", "dlock.locks", "dlock.multi", "dlock.atomic", "dlock.fence", "dlock.aio"),
    *("dlock.admin", "dlock._session", "dlock._enter", "dlock._handle", "dlock._calls"),
    *("dlock._notices", "dlock._cycle", "dlock._watch", "dlock.rwlock", "dlock.semaphore"),
    *("dlock._reentrant", "dlock.futures", "dlock._attempt", "dlock._factory"),
    *("dlock._claims", "dlock._objects", "dlock._reconnect"),
    "dlock.durable",
)
CLIENT = (*MIRROR, *API, "dlock.control.link")
SERVER = (
    *("dlock.server", "dlock.primary", "dlock.dserver"),
    *("dlock.control.registry*", "dlock.control.loop*", "dlock.control.durable*"),
)
EDGES = (
    *("dlock.cli", "dlock.doors", "dlock.drill", "dlock.dss", "dlock.mpi"),
    *("dlock.tooz_driver", "dlock._tooz_groups", "dlock.__main__"),
)
# What a door is: a client like any other. No mirror, no server, no command line.
DOORS = ("dlock.doors", "dlock.dss")
FOR_DOORS = (
    *("=dlock", *names_of_dlock(), "dlock.aio", "dlock.admin", "dlock.address"),
    *("dlock.durable", "dlock.errors"),
    *DOORS,
)
PACKAGES_OF_DOORS = words("uvloop httptools h2 hpack hyperframe wsproto google yaml")

PYTHON_RULES = {
    "only _core imports the C core": PythonRule(
        ("dlock",), ("dlock._native", "cffi", "_cffi_backend"), excused=("dlock._core",)
    ),
    "doors, drill, dss, cli, mpi and tooz use the public API only": PythonRule(
        EDGES, ("dlock",), (*PUBLIC, *EDGES)
    ),
    "a door is a client like any other": PythonRule(DOORS, ("dlock",), FOR_DOORS),
    "a door starts no thread": PythonRule(
        ("dlock.doors",), ("threading", "concurrent", "multiprocessing")
    ),
    "the packages of the doors are theirs": PythonRule(
        ("dlock",), tuple(PACKAGES_OF_DOORS), excused=("dlock.doors",)
    ),
    "the names of doors are pure": PythonRule(("dlock.doors.names",), (*IMPURE_MODULES, "dlock")),
    "requests and answers of HTTP are pure": PythonRule(
        ("dlock.doors.http_parse", "dlock.doors.http_answer"), (*IMPURE_MODULES, "dlock")
    ),
    "the command line of DoubleDutch is pure": PythonRule(
        ("dlock.doors.doubledutch.flags",), (*IMPURE_MODULES, "dlock"), ("dlock.doors.door",)
    ),
    "glockd's lines, tables, flags and websockets are pure": PythonRule(
        tuple(f"dlock.doors.glockd.{name}" for name in ("protocol", "tables", "flags",
                                                        "websocket")),
        (*IMPURE_MODULES, "dlock"),
        ("dlock.doors.glockd.protocol",),
    ),
    "LDLM's names, refusals, durations and JSON are pure": PythonRule(
        tuple(f"dlock.doors.ldlm.{name}" for name in ("table", "problems", "duration",
                                                      "protojson")),
        (*IMPURE_MODULES, "dlock"),
        ("dlock.doors.ldlm.problems",),
    ),
    "LDLM's messages, and gRPC with its streams, are pure": PythonRule(
        tuple(f"dlock.doors.ldlm.{name}" for name in ("wire", "calls", "keepalive", "lane",
                                                      "http2")),
        (*IMPURE_MODULES, "dlock"),
        tuple(f"dlock.doors.ldlm.{name}" for name in ("wire", "calls", "lane", "problems")),
    ),
    "messages, codec, registry and recovery are functions of (state, input, now)": PythonRule(
        PURE,
        (*IMPURE_MODULES, "dlock.control.loop*", "dlock.control.link", "dlock.server",
         "dlock.primary"),
    ),
    "a primary starts no thread and waits for nothing": PythonRule(
        ("dlock.primary",), ("threading", "concurrent", "asyncio", "time", "dlock.server")
    ),
    "the Python API does not know the mirror": PythonRule(API, MIRROR),
    "the mirror does not know the Python API": PythonRule(MIRROR, API),
    "errors, addresses and pauses stand alone": PythonRule(
        ("dlock.errors", "dlock.address", "dlock._retry"), ("dlock",), ("dlock._core",)
    ),
    "what an operation asks and what its answer means is pure of waiting": PythonRule(
        ("dlock._calls", "dlock._cycle"),
        (*IMPURE_MODULES, "dlock"),
        (*("dlock._calls", "dlock._core", "dlock._handle", "dlock._session", "dlock.errors"),
         "dlock.control.messages"),
    ),
    "a guard of storage needs no server": PythonRule(
        ("dlock.fence",), ("dlock",), ("dlock.errors",)
    ),
    "the types stand alone": PythonRule(("dlock.types",), ("dlock",), ("dlock._core",)),
    "the words for transports know nothing else": PythonRule(
        ("dlock._transport",), ("dlock",), ("dlock._verbs", "dlock._frozen")
    ),
    "how a queue pair comes about is known to both APIs, and knows neither": PythonRule(
        ("dlock._pairing",), (*MIRROR, *API, "threading", "asyncio", "dlock.control.link")
    ),
    "what a value is stands alone": PythonRule(("dlock._frozen",), (*IMPURE_MODULES, "dlock")),
    "a history is checked without dlock": PythonRule(
        tuple(f"dlock.linear.{name}" for name in ("history", "models", "checker", "lines")),
        (*IMPURE_MODULES, "dlock"),
        ("os", *(f"dlock.linear.{name}" for name in ("history", "models", "checker"))),
    ),
    "only the binding imports pyverbs": PythonRule(
        ("dlock",), ("pyverbs",), excused=("dlock.rdma.binding",)
    ),
    "RDMA in Python knows no server and no client": PythonRule(
        ("dlock.rdma",), ("dlock",),
        ("dlock.rdma", "dlock._core", "dlock._verbs", "dlock._frozen"),
    ),
    "what is missing for RDMA, and what is chosen, is pure": PythonRule(
        ("dlock.rdma.facts", "dlock.rdma.choice", "dlock.rdma.advice"), IMPURE_MODULES
    ),
    "_core stands alone": PythonRule(("dlock._core",), ("dlock",), ("dlock._native",)),
    "what is thin above _core knows nothing else": PythonRule(
        ("dlock._plane", "dlock._verbs", "dlock._engine", "dlock._owned"), ("dlock",),
        ("dlock._core", "dlock._owned", "dlock._verbs"),
    ),
    "the client does not reach into the server": PythonRule(CLIENT, SERVER),
    "the server does not reach into the client": PythonRule(SERVER, CLIENT),
    "asyncio starts no threads and runs no loop of its own": PythonRule(
        ("dlock.aio",), ("threading", "concurrent", "dlock.client", "dlock.locks", "uvloop")
    ),
    "the service is no client of its edges": PythonRule(
        ("dlock",), (*EDGES, "argparse"), excused=EDGES
    ),
}


# What crosses the boundary between the engine, the plane, the wire and Python stays one file.
LINES_MAX = {"dlock_abi.h": 700}


def sources(*patterns: str) -> list[Path]:
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file())


C_CORE = sources("native/*.c", "native/*.h")
C_ALL = sources("native/**/*.c", "native/**/*.h", "tests/**/*.c", "tests/**/*.h")
PYTHON_LIBRARY = sources("dlock/**/*.py")
PYTHON_ALL = [
    path
    for folder in ("dlock", "native", "tests", "benchmarks", "sim", "examples", "scripts")
    for path in sources(f"{folder}/**/*.py")
]


def layer_of(name: str) -> str | None:
    """The first layer that fits: client_book.c is the book's, not the client's."""
    found = [
        layer
        for layer, described in C_LAYERS.items()
        if any(Path(name).match(pattern) for pattern in described.files)
    ]
    return found[0] if found else None


def c_layer_problems(name: str, text: str) -> Iterator[rules.Problem]:
    own = layer_of(name)
    if own is None:
        yield 1, "belongs to no layer: add it to C_LAYERS and to docs/architecture.md"
        return
    described = C_LAYERS[own]
    for line, included, of_system in rules.c_includes(text):
        if of_system:
            if described.pure and included not in PURE_HEADERS:
                yield line, f"layer {own} may not include <{included}>"
        elif layer_of(included) not in {own, *described.above}:
            yield line, f"layer {own} may not include {included} of layer {layer_of(included)}"
    if described.pure:
        yield from rules.c_call_problems(text, CLOCK_AND_IO_CALLS)
        yield from rules.c_global_problems(text)
    if own in ("rules", "heap", "engine"):
        yield from rules.c_call_problems(text, ALLOCATING_CALLS, excused=("_new", "_init"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def python_rule_problems(module: str, text: str, package: bool = False) -> Iterator[rules.Problem]:
    imports = rules.python_imports(text, module, package)
    for law, rule in PYTHON_RULES.items():
        if rules.within(module, rule.modules) and not rules.within(module, rule.excused):
            for line, words in rules.python_import_problems(imports, rule.banned, rule.allowed):
                yield line, f"{words}: {law}"


def report(paths: Iterable[Path], check: Callable[[Path, str], Iterator[rules.Problem]]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {words}"
        for path in paths
        for line, words in check(path, path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)


# ---- the tree ------------------------------------------------------------------------------------


def test_there_is_something_to_check() -> None:
    assert len(C_CORE) > 1
    assert PYTHON_LIBRARY


def test_files_and_lines_are_short() -> None:
    report(
        [*C_ALL, *PYTHON_ALL],
        lambda path, text: rules.size_problems(
            text, LINES_MAX.get(path.name, rules.FILE_LINES_MAX)
        ),
    )


def test_functions_fit_a_screen() -> None:
    report(C_ALL, lambda _, text: rules.function_size_problems(rules.c_functions(text)))
    report(PYTHON_ALL, lambda _, text: rules.function_size_problems(rules.python_functions(text)))


def test_files_say_what_they_are_for() -> None:
    report(C_ALL, lambda _, text: rules.c_form_problems(text))
    report(PYTHON_ALL, lambda _, text: rules.python_form_problems(text))


def test_c_names_cross_a_file_only_with_the_prefix() -> None:
    report(C_CORE, lambda _, text: rules.c_name_problems(text))


def test_c_layers() -> None:
    report(C_CORE, lambda path, text: c_layer_problems(path.name, text))


def test_the_documented_layers_are_these() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [
        row.split("|")[1:3] for row in table.splitlines() if "`native/" in row and row[0] == "|"
    ]
    documented = {
        layer.strip(): tuple(Path(name.strip(" `")).name for name in files.split(","))
        for layer, files in rows
    }
    assert documented == {layer: described.files for layer, described in C_LAYERS.items()}


def test_python_layers() -> None:
    report(
        PYTHON_LIBRARY,
        lambda path, text: python_rule_problems(
            module_name(path), text, path.name == "__init__.py"
        ),
    )


def test_import_does_no_work_and_configures_no_logging() -> None:
    report(PYTHON_LIBRARY, lambda _, text: rules.python_import_work_problems(text))
    library = [path for path in PYTHON_LIBRARY if "cli" not in path.parts]
    report(library, lambda _, text: rules.python_logging_problems(text))


# ---- the checks can fail -------------------------------------------------------------------------

LONG_C = "/* x */\nstatic int f(int a,\n             int b)\n{\n" + "    a++;\n" * 70 + "}\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("engine.c", "#include <time.h>\n"),
        ("engine_queue.c", "#include <unistd.h>\n"),
        ("rules.c", "#include <sys/socket.h>\n"),
        ("client_book.c", "int f(void)\n{\n    return (int)dlk_now_ns();\n}\n"),
        ("engine.c", '#include "plane.h"\n'),
        ("engine.c", '#include "client.h"\n'),
        ("rules.c", '#include "engine.h"\n'),
        ("client_book.c", '#include "client.h"\n'),
        ("plane.c", '#include "client.h"\n'),
        ("client.c", '#include "engine.h"\n'),
        ("transport_tcp.c", '#include "codec.h"\n'),
        ("engine.c", "void dlk_engine_step(void)\n{\n    free(malloc(1));\n}\n"),
        ("engine.c", "static unsigned counter;\n"),
        ("engine.c", "static unsigned counts[4] = {0};\n"),
        ("engine.c", "int f(void)\n{\n    static int calls = 0;\n    return calls++;\n}\n"),
        ("stranger.c", ""),
    ],
)
def test_a_c_layer_broken_is_seen(name: str, text: str) -> None:
    assert list(c_layer_problems(name, text))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("engine.c", '#include "engine.h"\n#include "rules.h"\n#include <string.h>\n'),
        ("engine.c", "/* dlk_now_ns() is the plane's */\nstatic const int sizes[] = {1, 2};\n"),
        ("heap.c", "void dlk_heap_init(void)\n{\n    free(malloc(1));\n}\n"),
        ("engine.c", "struct a {\n    int b;\n};\nenum { C = 1 };\nstruct d;\nint f(int g);\n"),
        ("plane.c", '#include <time.h>\n#include "engine.h"\nstatic int running;\n'),
        ("client.c", '#include "client_book.h"\n'),
    ],
)
def test_a_c_layer_kept_is_not_blamed(name: str, text: str) -> None:
    assert list(c_layer_problems(name, text)) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("dlock.dclient", "from dlock import _native\n"),
        ("dlock.server", "def f():\n    import dlock._native.lib\n"),
        ("dlock.control.link", "from .._native import lib\n"),
        ("dlock.cli.bench", "from dlock import _core\n"),
        ("dlock.doors.ldlm", "from dlock.control import registry\n"),
        ("dlock.doors.ldlm", "from dlock import dclient\n"),
        ("dlock.doors.frame", "from dlock.cli import common\n"),
        ("dlock.doors.glockd", "import threading\n"),
        ("dlock.doors.names", "import time\n"),
        ("dlock.aio.client", "import uvloop\n"),
        ("dlock.dss", "from dlock import _core\n"),
        ("dlock.control.registry", "import selectors\n"),
        ("dlock.control.messages", "from time import monotonic\n"),
        ("dlock.types", "import dlock.dclient\n"),
        ("dlock.dclient", "from .control.loop import Loop\n"),
        ("dlock.server", "from dlock.dclient import client_init\n"),
        ("dlock.control.loop", "import argparse\n"),
        ("dlock._mirror_locks", "from dlock.control import registry_locks\n"),
        ("dlock.control.registry_locks", "import time\n"),
        ("dlock.aio.client", "import threading\n"),
    ],
)
def test_a_python_layer_broken_is_seen(module: str, text: str) -> None:
    assert list(python_rule_problems(module, text))


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("dlock._core", "from dlock._native import ffi, lib\n"),
        ("dlock._plane", "from dlock import _verbs\nfrom dlock._core import ffi\n"),
        ("dlock.cli.serve", "from dlock.server import Server\nfrom . import common\nimport time\n"),
        ("dlock.types", "from dlock import _core\nimport enum\n"),
        ("dlock.control.loop", "import selectors\nfrom .registry import Registry\n"),
        ("dlock.cli.run", "import dlock\nfrom dlock import errors\n"),
        ("dlock.doors.frame", "import uvloop\nfrom dlock import aio\nfrom . import names\n"),
    ],
)
def test_a_python_layer_kept_is_not_blamed(module: str, text: str) -> None:
    assert list(python_rule_problems(module, text)) == []


def test_functions_are_measured() -> None:
    (function,) = rules.c_functions(LONG_C)
    assert (function.name, function.first_line, function.lines) == ("f", 2, 74)
    assert list(rules.function_size_problems([function]))
    tall = rules.python_functions("def f():\n" + "    print()\n" * 70)
    assert [function.lines for function in tall] == [71]
    assert list(rules.function_size_problems(tall))
    assert not list(rules.function_size_problems(rules.python_functions("def f():\n    pass\n")))


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (rules.size_problems, "x\n" * 500),
        (rules.size_problems, "x" * 101),
        (rules.size_problems, "int a;\t/* b */"),
        (rules.size_problems, "# TO" + "DO later\n"),
        (rules.c_form_problems, "int a;\n"),
        (rules.c_form_problems, "/* what */\n/* a = b + 1; */\n"),
        (rules.c_form_problems, "/* what */\n// free(pointer);\n"),
        (rules.c_name_problems, "int helper(void)\n{\n    return 0;\n}\n"),
        (rules.python_form_problems, "import os\n"),
        (rules.python_import_work_problems, "import socket\nsocket.create_connection(('h', 1))\n"),
        (rules.python_import_work_problems, "for i in range(3):\n    pass\n"),
        (rules.python_logging_problems, "import logging\nlogging.basicConfig()\n"),
    ],
)
def test_a_law_of_form_broken_is_seen(
    check: Callable[[str], Iterator[rules.Problem]], text: str
) -> None:
    assert list(check(text))
