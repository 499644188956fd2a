"""What pyproject.toml asks for, as lines for pip; it is the only place where packages are named.

Usage: requirements.py check                        can this Python make the virtual environment?
       requirements.py (build|run|cli|test|...)...    the packages of these groups, one a line
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CMAKE_MINIMUM = (3, 15)


def project() -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        from pip._vendor import tomli as tomllib
    with open(ROOT / "pyproject.toml", "rb") as file:
        parsed: dict[str, Any] = tomllib.load(file)
    return parsed


def system_cmake_is_enough() -> bool:
    if shutil.which("cmake") is None or shutil.which("ctest") is None:
        return False
    shown = subprocess.run(["cmake", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\d+)\.(\d+)", shown.stdout)
    return found is not None and (int(found[1]), int(found[2])) >= CMAKE_MINIMUM


def packages(group: str) -> list[str]:
    described = project()
    if group == "build":
        listed = ["pip>=21.3", *described["build-system"]["requires"]]  # 21.3: editable installs
        return listed if system_cmake_is_enough() else [*listed, "cmake>=3.15"]
    if group == "run":
        return list(described["project"]["dependencies"])
    return list(described["project"]["optional-dependencies"][group])


def what_is_missing() -> list[str]:
    """What this machine lacks, each with the command that mends it on Debian and its like."""
    missing = []
    if sys.version_info < (3, 10):  # noqa: UP036 - this is the one file that older ones run
        missing.append(f"Python 3.10 or newer (this is {sys.version.split()[0]}; set PYTHON=...)")
    if importlib.util.find_spec("ensurepip") is None:
        missing.append("the venv module with pip: apt-get install python3-venv")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        missing.append("Python's C headers: apt-get install python3-dev")
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        missing.append("a C compiler: apt-get install gcc libc6-dev")
    return missing


def main(words: list[str]) -> int:
    if words == ["check"]:
        missing = what_is_missing()
        for line in missing:
            print(f"dlock needs {line}", file=sys.stderr)
        return 1 if missing else 0
    for word in words:
        print("\n".join(packages(word)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
