"""The command line of the measurements: which parts, how long, how often; table and JSON."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks import machine, peers, report
from benchmarks.plan import Plan

PARTS: Final = ("engine", "floor", "latency", "throughput", "handover", "crowd", "api", "recovery",
                "failover", "judge", "linear", "doors", "dss", "rdma")
RESULTS: Final = Path(__file__).resolve().parent / "results"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, epilog="See docs/benchmarks.md.")
    parser.add_argument("parts", nargs="*", metavar="PART",
                        help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--runs", type=int, default=5, help="medians are over these (default 5)")
    parser.add_argument("--seconds", type=float, default=1.0,
                        help="of each single measurement (default 1)")
    parser.add_argument("--names", type=int, default=20_000, metavar="N",
                        help="used once each in the part api (default 20,000; try 1,000,000)")
    parser.add_argument("--large", action="store_true",
                        help="recover 1,000,000 locks too (several GiB, many minutes)")
    parser.add_argument("--device", metavar="NAME",
                        help="of RDMA, in the part rdma (default: what dlock would choose)")
    parser.add_argument("--quick", action="store_true",
                        help="one short run of everything, small; its figures mean nothing")
    parser.add_argument("--install-peers", action="store_true",
                        help=f"apt-get install {' '.join(peers.PACKAGES)} first (as root)")
    parser.add_argument("--output", type=Path, metavar="FILE",
                        help="JSON (default: benchmarks/results/TIME.json)")
    arguments = parser.parse_args(argv)
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if arguments.names < 2:
        parser.error("--names is 2 or more")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, writes; 0 if every target is met, 1 if one is missed."""
    arguments = parse(argv)
    if arguments.install_peers:
        peers.install()
    plan = Plan(arguments.runs, arguments.seconds, names=arguments.names, large=arguments.large,
                device=arguments.device)
    if arguments.quick:
        plan = Plan(1, min(arguments.seconds, 0.05), quick=True, device=arguments.device)
    facts = {**machine.facts(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
             "runs": plan.runs, "seconds": plan.seconds, "quick": plan.quick}
    output = arguments.output or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    figures: list[report.Figure] = []
    for part in arguments.parts or PARTS:
        print(f"measuring {part} ...", file=sys.stderr, flush=True)
        of_part = report.Figures(part)
        importlib.import_module(f"benchmarks.part_{part}").measure(plan, of_part)
        figures += of_part
        report.write(output, facts, figures)
    for name, fact in facts.items():
        print(f"{name}: {fact}")
    print(report.table(figures))
    print(f"\nwritten to {output}")
    return 1 if any(figure.met is False for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
