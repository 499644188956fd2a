"""Writes the C source of the cffi module from dlock_abi.h; CMake runs it, import never does.

Usage: generate_cffi.py ABI_HEADER OUTPUT_C
"""

import re
import sys
from pathlib import Path

import cffi


def declarations(header: str) -> str:
    """The header as a cdef: without comments and without preprocessor lines."""
    without_comments = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    return "\n".join(
        line for line in without_comments.splitlines() if not line.lstrip().startswith("#")
    )


def main(header_path: str, output_path: str) -> None:
    builder = cffi.FFI()
    builder.cdef(declarations(Path(header_path).read_text(encoding="utf-8")))
    builder.set_source("dlock._native", '#include "dlock_abi.h"')
    builder.emit_c_code(output_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
