"""`python -m dlock`: the `dlock` command, with the interpreter that runs this."""

import sys

from dlock.cli import main

if __name__ == "__main__":
    sys.exit(main())
