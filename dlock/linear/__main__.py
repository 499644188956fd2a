"""`python -m dlock.linear FILE...`: checks the history that these files are together.

Exit status: 0 it is linearizable; 1 it is not; 2 it could not be checked."""

from __future__ import annotations

import sys

from dlock.linear.checker import check
from dlock.linear.lines import HistoryError, read


def main(arguments: list[str]) -> int:
    """The exit status."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m dlock.linear FILE...", file=sys.stderr)
        return 2
    try:
        verdict = check(read(arguments))
    except (HistoryError, OSError, ValueError) as problem:
        print(f"dlock.linear: {problem}", file=sys.stderr)
        return 2
    print(verdict)
    return 0 if verdict.ok else 1 if verdict.violated else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
