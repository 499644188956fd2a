"""The documents say what is so: tables against the header, names against the tree, commands."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import cffi
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "native"))

import generate_cffi  # noqa: E402

DOCS = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])


@pytest.fixture(scope="module")
def abi() -> cffi.FFI:
    """The headers as cffi understands them, without compiling anything."""
    ffi = cffi.FFI()
    for name in ("dlock_abi.h", "abi_verbs.h", "abi_client.h", "abi_bench.h"):
        header = (ROOT / "native" / name).read_text(encoding="utf-8")
        ffi.cdef(generate_cffi.declarations(header))
    return ffi


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under this heading, until the next one of any depth."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.M | re.S)
    assert found, f"no heading {heading!r}"
    return found[1]


def table(text: str) -> list[list[str]]:
    """The cells of the first table of the text, without its head."""
    first = re.search(r"(?:^\|.*\|\n)+", text, re.M)
    assert first, "no table"
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in first[0].splitlines()][2:]


# ---- the protocol --------------------------------------------------------------------------------


def frame_rows(ffi: cffi.FFI, struct: str) -> list[tuple[int, int, str]]:
    described: list[tuple[str, Any]] = ffi.typeof(struct).fields
    return [(field.offset, ffi.sizeof(field.type), name) for name, field in described]


@pytest.mark.parametrize("struct", ["struct dlk_attach", "struct dlk_request", "struct dlk_reply"])
def test_frames_are_as_documented(abi: cffi.FFI, struct: str) -> None:
    documented = [
        (int(offset), int(size), name.strip("`"))
        for offset, size, name, _ in table(section(read("docs/protocol.md"), struct))
    ]
    assert documented == frame_rows(abi, struct)


@pytest.mark.parametrize("struct", ["struct dlk_attach", "struct dlk_request", "struct dlk_reply"])
def test_frames_have_no_holes(abi: cffi.FFI, struct: str) -> None:
    end = 0
    for offset, size, _ in frame_rows(abi, struct):
        assert offset == end
        end += size
    frame_bytes = {name: n for n, name in abi.typeof("enum dlk_limit").elements.items()}
    assert end == abi.sizeof(struct) == frame_bytes["DLK_FRAME_BYTES"]


@pytest.mark.parametrize(
    ("enum", "prefix"),
    [
        ("enum dlk_op", "DLK_OP_"),
        ("enum dlk_request_flag", "DLK_FLAG_"),
        ("enum dlk_result", "DLK_RESULT_"),
    ],
)
def test_numbers_are_as_documented(abi: cffi.FFI, enum: str, prefix: str) -> None:
    declared = {
        number: name.removeprefix(prefix)
        for number, name in abi.typeof(enum).elements.items()
        if name not in (f"{prefix}COUNT", f"{prefix}ALL")
    }
    rows = table(section(read("docs/protocol.md"), enum))
    documented = {int(number): name for number, name, _ in rows}
    assert len(documented) == len(rows)
    assert documented == declared


def test_numbers_in_the_text_of_the_protocol(abi: cffi.FFI) -> None:
    limits = {name: number for number, name in abi.typeof("enum dlk_limit").elements.items()}
    text = read("docs/protocol.md")
    assert f"at most {limits['DLK_INFLIGHT_MAX']} a connection" in text
    assert f"frames of {limits['DLK_FRAME_BYTES']} bytes" in text
    assert f"{limits['DLK_ATTACH_MAGIC']:#x}" in text


# ---- lock kinds ----------------------------------------------------------------------------------


def test_every_kind_is_documented_alike(abi: cffi.FFI) -> None:
    declared = [
        name.removeprefix("DLK_KIND_")
        for _, name in sorted(abi.typeof("enum dlk_kind").elements.items())
        if name != "DLK_KIND_COUNT"
    ]
    for document in ("README.md", "docs/lock-kinds.md"):
        rows = table(read(document))
        assert [row[0] for row in rows] == declared, document


# ---- names and commands --------------------------------------------------------------------------

FOLDERS = "native dlock models sim tests docs examples benchmarks scripts .ci"
PATH = re.compile(rf"`((?:{FOLDERS.replace('.', '[.]').replace(' ', '|')})/[\w./*\[\]-]*)`")


def named_files(text: str) -> set[str]:
    return set(PATH.findall(text))


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    made = read(".gitignore").splitlines()
    missing = [
        name
        for name in named_files(document.read_text(encoding="utf-8"))
        if name not in made and not any(ROOT.glob(name.rstrip("/")))
    ]
    assert not missing


def test_every_document_that_a_source_names_exists() -> None:
    patterns = ("native/*.[ch]", "dlock/**/*.py", "tests/**/*.[ch]", "tests/**/*.py", "examples/*")
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for pattern in patterns
        for path in ROOT.glob(pattern)
        if path.is_file()
        for name in re.findall(r"\bdocs/[\w-]+\.md", path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    }
    assert not missing


@pytest.mark.parametrize("document", ["docs/tour.md", "docs/architecture.md"])
def test_every_source_file_has_its_line(document: str) -> None:
    covered = {path for name in named_files(read(document)) for path in ROOT.glob(name.rstrip("/"))}
    sources = [*ROOT.glob("native/*.[ch]"), *ROOT.glob("dlock/**/*.py")]
    unnamed = [
        str(path.relative_to(ROOT))
        for path in sources
        if path not in covered and path.name != "__init__.py"
    ]
    assert not unnamed, f"{document} has no line for {unnamed}"


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_every_c_name_in_a_document_exists(document: Path) -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("native/*.[ch]"))
    known = set(re.findall(r"\b(?:dlk|DLK)_\w+", sources))
    named = set(re.findall(r"\b(?:dlk|DLK)_\w+(?!\w*\*)", document.read_text(encoding="utf-8")))
    assert named <= known, named - known


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / target).exists(), target


def test_the_c_test_that_the_tour_runs_exists() -> None:
    (name,) = re.findall(r"build/c/(\w+)", read("docs/tour.md"))
    assert (ROOT / "tests" / "native" / f"{name}.c").exists()


@pytest.mark.parametrize("document", DOCS, ids=lambda path: path.name)
def test_every_make_command_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.M))
    for command in re.findall(r"`make ([a-z-]+)", document.read_text(encoding="utf-8")):
        assert command in targets, f"make {command}"


def test_the_version_is_one() -> None:
    version = re.search(r'^version = "([^"]+)"', read("pyproject.toml"), re.M)
    module = re.search(r'^__version__ = "([^"]+)"', read("dlock/__init__.py"), re.M)
    newest = re.search(r"^## \[([^\]]+)\]", read("CHANGELOG.md"), re.M)
    assert version
    assert module
    assert newest
    assert version[1] == module[1] == newest[1]


# ---- promises ------------------------------------------------------------------------------------


def check_tests(row: str) -> None:
    """The last cell of the row names tests, and each of them exists."""
    cell = row.split("|")[-2]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cell)
    in_c = re.findall(r"`(tests/native/\w+\.c)`", cell)
    assert named or in_c, row
    for file, function in named:
        assert re.search(rf"^\s*(?:async )?def {function}\(", read(file), re.M), function
    for file in in_c:
        assert (ROOT / file).exists(), file


def test_every_promise_names_a_test_that_exists() -> None:
    page = read("docs/what-happens.md")
    rows = [row for row in page.splitlines() if row.startswith("|") and not row.startswith("|--")]
    promises = [row for row in rows if not row.startswith("| what happens")]
    assert promises
    for promise in promises:
        check_tests(promise)


def test_every_rule_of_a_recovery_names_a_test_that_exists() -> None:
    page = read("docs/recovery.md")
    rules = [int(number) for number in re.findall(r"^\*\*(\d+)\. ", page, re.M)]
    assert rules == list(range(1, len(rules) + 1))
    rows = re.findall(r"^\| (\d+) \|.*\|$", section(page, "Each rule and its test"), re.M)
    assert [int(number) for number in rows] == rules
    for row in section(page, "Each rule and its test").splitlines():
        if re.match(r"\| \d", row):
            check_tests(row)
