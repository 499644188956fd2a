"""A copy of this tree in which a fault is planted, and which is built as the original is.

A copy stays in build/broken from one run to the next, and so does what was compiled there: only
files that differ are written, so that a fault costs the compilation of one file. It may not touch
anything outside of its folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
COPIED: Final = ("CMakeLists.txt", "pyproject.toml", "native", "dlock", "sim", "tests")
LEFT_OUT: Final = shutil.ignore_patterns("__pycache__", "*.so")
BUILD_S: Final = 600


class FaultError(Exception):
    """A fault cannot be planted, or what has it cannot be built. The text says why."""


class Tree:
    """One copy. `folder`: where it is; `environment`: for programs that are to run in it."""

    def __init__(self, folder: Path, source: Path = ROOT) -> None:
        self.folder = folder
        self._source = source
        packages = sysconfig.get_paths()
        # Without the site module (-S), so that an editable install of the original is not found.
        path = os.pathsep.join(map(str, [folder, packages["purelib"], packages["platlib"]]))
        self.environment: Mapping[str, str] = {
            **os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}

    def python(self, *arguments: str) -> list[str]:
        """The command for a module of the copy."""
        return [sys.executable, "-S", "-m", *arguments]

    # ---- Files -----------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Makes it what the original is now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in COPIED:
            original = self._source / name
            if original.is_dir():
                self._mirror(original, self.folder / name)
            elif original.exists():
                _write_changed(self.folder / name, original.read_bytes())

    def _mirror(self, original: Path, copy: Path) -> None:
        copy.mkdir(parents=True, exist_ok=True)
        names = sorted(one.name for one in original.iterdir())
        ignored = LEFT_OUT(str(original), names)
        for name in names:
            if name in ignored:
                continue
            if (original / name).is_dir():
                self._mirror(original / name, copy / name)
            else:
                _write_changed(copy / name, (original / name).read_bytes())
        for stale in copy.iterdir():
            if stale.name not in names and not stale.name.endswith(".so"):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()

    @contextlib.contextmanager
    def with_planted(self, file: str, old: str, new: str) -> Iterator[None]:
        """While this lasts, the file has the new text in the place of the old one."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        count = text.count(old)
        if count != 1:
            raise FaultError(f"{file} has the text {count} times, not once:\n{old}")
        _write_changed(path, text.replace(old, new).encode())
        try:
            yield
        finally:
            _write_changed(path, text.encode())

    # ---- Building --------------------------------------------------------------------------------

    def build(self) -> None:
        """Compiles what has changed, and puts the extension where `import dlock` finds it."""
        built = self.folder / "build"
        if not (built / "CMakeCache.txt").exists():
            _run(["cmake", "-S", str(self.folder), "-B", str(built), "-DDLOCK_WERROR=OFF",
                  f"-DPython_EXECUTABLE={sys.executable}"], self.environment)
        _run(["cmake", "--build", str(built), "--target", "_native"], self.environment)
        for module in built.glob("_native*.so"):
            shutil.copyfile(module, self.folder / "dlock" / module.name)


def _write_changed(path: Path, data: bytes) -> None:
    """A file that is what it is to be keeps its time stamp."""
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BUILD_S)
    if done.returncode != 0:
        raise FaultError(f"{' '.join(command)} fails:\n{(done.stdout + done.stderr)[-3000:]}")
