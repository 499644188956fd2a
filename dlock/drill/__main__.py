"""`python -m dlock.drill FOLDER`: judges the records of a drill that was kept, once more and
anywhere. Exit codes as those of `dlock drill`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dlock.drill import report
from dlock.drill.judge import NOT_CARRIED_OUT, judge
from dlock.drill.picture import PictureError, draw
from dlock.drill.records import RecordError, read


def main(argv: Sequence[str] | None = None) -> int:
    """Reads, judges, tells; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dlock.drill", description="Judges the kept records of a drill again.")
    parser.add_argument("folder", type=Path, help="what `dlock drill` has kept, or --keep DIR")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the report as JSON")
    parser.add_argument("--picture", metavar="FILE", type=Path,
                        help="also draw it, as .png, .svg or .pdf (needs dlock[picture])")
    arguments = parser.parse_args(argv)
    try:
        records = read(arguments.folder)
        verdict = judge(records)
        print(report.text(verdict, records), flush=True)
        if arguments.json:
            arguments.json.write_text(
                json.dumps(report.as_json(verdict, records)) + "\n", encoding="utf-8")
        if arguments.picture:
            draw(records, verdict, arguments.picture)
    except (RecordError, PictureError, OSError) as problem:
        print(f"python -m dlock.drill: {problem}", file=sys.stderr)
        return NOT_CARRIED_OUT
    return verdict.status


if __name__ == "__main__":
    sys.exit(main())
