"""Writes the C source of the cffi module from the ABI headers; CMake runs it, import never does.

Usage: generate_cffi.py OUTPUT_C ABI_HEADER...

Each header is read for itself; the last one includes those before it.
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


def main(output_path: str, *header_paths: str) -> None:
    builder = cffi.FFI()
    for header in map(Path, header_paths):
        builder.cdef(declarations(header.read_text(encoding="utf-8")))
    builder.set_source("dlock._native", f'#include "{Path(header_paths[-1]).name}"')
    builder.emit_c_code(output_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
