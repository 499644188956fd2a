"""Reads C and Python source just well enough to check the project's laws of form and layering.

Every rule is a function of text that yields what is wrong, as (line, words). Which rule holds for
which file is said in test_architecture.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 499
COLUMNS_MAX = 100

Problem = tuple[int, str]


@dataclass(frozen=True)
class Function:
    name: str
    first_line: int
    last_line: int
    static: bool

    @property
    def lines(self) -> int:
        return self.last_line - self.first_line + 1


# ---- any text ------------------------------------------------------------------------------------


def size_problems(text: str, lines_max: int = FILE_LINES_MAX) -> Iterator[Problem]:
    lines = text.splitlines()
    if len(lines) > lines_max:
        yield len(lines), f"{len(lines)} lines, {lines_max} are the end: split by purpose"
    for number, line in enumerate(lines, 1):
        columns = len(re.sub(r"  # (type: ignore|noqa)\S*$", "", line))  # a pragma may stand out
        if columns > COLUMNS_MAX:
            yield number, f"{columns} columns, {COLUMNS_MAX} are the end"
        if "\t" in line:
            yield number, "a tab"
        if line != line.rstrip():
            yield number, "blanks at the end of the line"
        if re.search(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b", line):
            yield number, "a note to self: do it, or say in a sentence why it is not done"


def function_size_problems(functions: list[Function]) -> Iterator[Problem]:
    for function in functions:
        if function.lines > FUNCTION_LINES_MAX:
            yield (
                function.first_line,
                f"{function.name} has {function.lines} lines, {FUNCTION_LINES_MAX} are the end",
            )


# ---- C -------------------------------------------------------------------------------------------

_C_TOKENS = re.compile(
    r"""/\*.*?\*/ | //[^\n]* | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'""", re.S | re.X
)


def c_code(text: str) -> str:
    """The text with comments, strings and preprocessor lines blanked, every line in its place."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    without_comments = _C_TOKENS.sub(blank, text)
    return re.sub(r"^[ ]*#(?:[^\n]*\\\n)*[^\n]*", blank, without_comments, flags=re.M)


def c_top_level(text: str) -> Iterator[tuple[int, str, int]]:
    """(first line, words, last line) of each definition or declaration at file scope; what stood
    in braces is left out, a function's words end with ')'."""
    code = c_code(text)
    depth, line, first_line, words, body = 0, 1, 0, "", False
    for char in code:
        line += char == "\n"
        if char == "{":
            if depth == 0:
                body = words.rstrip().endswith(")") and "=" not in words
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0 and body:
                yield first_line, words.strip(), line
                words, body = "", False
            elif depth == 0:
                words += "{}"
        elif depth == 0 and char == ";":
            yield first_line, words.strip() + ";", line
            words = ""
        elif depth == 0:
            if not words.strip() and not char.isspace():
                first_line = line
            words += char


def _named(words: str) -> str:
    names = re.findall(r"\b(?!__attribute__)(\w+)\s*\(", words)
    return names[0] if names else ""


def c_functions(text: str) -> list[Function]:
    return [
        Function(_named(words), first, last, re.search(r"\bstatic\b", words) is not None)
        for first, words, last in c_top_level(text)
        if not words.endswith(";")
    ]


def c_includes(text: str) -> list[tuple[int, str, bool]]:
    """(line, file, is it of the system) of each #include."""
    return [
        (number, found[2], found[1] == "<")
        for number, line in enumerate(text.splitlines(), 1)
        if (found := re.match(r'\s*#\s*include\s*([<"])([^>"]+)', line))
    ]


def c_name_problems(text: str) -> Iterator[Problem]:
    for function in c_functions(text):
        if not (function.static or function.name.startswith("dlk_") or function.name == "main"):
            yield function.first_line, f"{function.name} is neither static nor named dlk_..."


def c_call_problems(
    text: str, banned: Collection[str], excused: Collection[str] = ()
) -> Iterator[Problem]:
    """`excused` are endings of names: functions called so may call what is banned."""
    lines = c_code(text).splitlines()
    for function in c_functions(text):
        if function.name.endswith(tuple(excused)):
            continue
        for number in range(function.first_line, function.last_line + 1):
            for name in re.findall(r"\b(\w+)\s*\(", lines[number - 1]):
                if name in banned and name != function.name:
                    yield number, f"calls {name}"


def c_global_problems(text: str) -> Iterator[Problem]:
    """Variables that outlive a call: at file scope, or static in a function, and not const."""
    for first, words, _ in c_top_level(text):
        declared = words.rstrip(";").split("=")[0]
        type_only = re.fullmatch(r"\s*(struct|enum|union)\s+\w*\s*(\{\})?\s*", declared)
        if not words.endswith(";") or "(" in declared or type_only or not declared.strip():
            continue
        plain = re.fullmatch(r"[\w\s*]+(\[\w*\])*\s*", declared)
        if ("=" in words or plain) and not re.search(r"\b(const|typedef|extern)\b", declared):
            yield first, f"a variable at file scope: {declared.strip()}"
    for number, line in enumerate(c_code(text).splitlines(), 1):
        if re.match(r"\s+static\s+(?!const\b|inline\b)", line):
            yield number, "a static variable in a function"


_STATEMENT = re.compile(
    r"\w[\w\s*.>\[\]-]*=\s*\S.*; | \w+\(.*\); | return\b.*; | (if|for|while)\s*\(.*\{", re.X
)


def c_form_problems(text: str) -> Iterator[Problem]:
    if not text.startswith("/*"):
        yield 1, "does not open with a comment that says what the file is for"
    for match in re.finditer(r"/\*.*?\*/|//[^\n]*", text, re.S):
        for offset, line in enumerate(match[0].splitlines()):
            words = line.strip().lstrip("/*").rstrip("*/").strip()
            if _STATEMENT.fullmatch(words):
                yield text.count("\n", 0, match.start()) + 1 + offset, "code in a comment"


# ---- Python --------------------------------------------------------------------------------------


def python_functions(text: str) -> list[Function]:
    return [
        Function(node.name, node.lineno, node.end_lineno or node.lineno, node.name[0] == "_")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def python_imports(text: str, module: str, package: bool = False) -> list[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in the file. `from a import b` gives
    a.b, since b may be a module; `package` says that the file is an __init__."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + package]
                base = ".".join([*kept, *([base] if base else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def within(name: str, modules: Collection[str]) -> bool:
    """Is this dotted name one of the modules, or something in one of them? A module that ends with
    a star stands for all that begin like it, one that begins with = for its own name alone."""
    return any(
        name.startswith(module[:-1])
        if module.endswith("*")
        else name == module[1:]
        if module.startswith("=")
        else f"{name}.".startswith(f"{module}.")
        for module in modules
    )


def python_import_problems(
    imports: list[tuple[int, str]], banned: Collection[str], allowed: Collection[str] = ()
) -> Iterator[Problem]:
    """`allowed` names exceptions to `banned`."""
    for line, name in imports:
        if within(name, banned) and not within(name, allowed):
            yield line, f"imports {name}"


def python_form_problems(text: str) -> Iterator[Problem]:
    tree = ast.parse(text)
    if text.strip() and ast.get_docstring(tree) is None:
        yield 1, "does not open with a docstring that says what the file is for"


def python_import_work_problems(text: str) -> Iterator[Problem]:
    """Statements at module level that do something when the module is imported."""
    declares = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    quiet = (*declares, ast.Assign, ast.AnnAssign, ast.Assert)
    for node in ast.parse(text).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if ast.unparse(node).startswith("globals().update("):  # declares names in one go
            continue
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.If, ast.Try)):
            bodies = [*node.body, *node.orelse, *getattr(node, "handlers", [])]
            if all(isinstance(inner, (*quiet, ast.ExceptHandler, ast.Raise)) for inner in bodies):
                continue
        if not isinstance(node, quiet):
            yield node.lineno, f"does work at import: {ast.unparse(node)[:60]}"


def python_logging_problems(text: str) -> Iterator[Problem]:
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"\blogging\.(basicConfig|config)\b|\.addHandler\(|\.setLevel\(", line):
            yield number, "configures logging: that is the application's"
