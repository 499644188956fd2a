"""A long run: two services under steady load, and whether anything of them grows.

One primary lives for the whole time; the other is killed and started anew now and then. Each has
client processes of every kind (threads, tasks, the mirror), one whose sessions come and go, and now
and then a client that is killed while it holds locks. Memory, descriptors and threads of every
process are sampled, the gauges of the primaries, and the files of their state directories.

`python -m dlock.drill.soak --seconds 3600` (`make soak SECONDS=3600`) writes samples, verdict and
text into build/soak/. Exit codes: 0 all is flat, 1 something grows or went wrong, 2 it could not be
carried out, or was too short to tell.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import dlock
from dlock.admin import Admin
from dlock.cli.text import duration
from dlock.drill import soak_report
from dlock.drill.sample import folder_bytes, usage
from dlock.drill.soak_load import PLANTS
from dlock.drill.soak_report import Run, Series
from dlock.drill.soak_service import END_S, LOADS, Service, SoakError
from dlock.errors import DlockError

SAMPLES: Final = 900  # of a whole run, about
SAMPLE_S: Final = (0.25, 4.0)  # at least and at most between two samples
VICTIMS: Final = 200  # of a whole run, at most
VICTIM_S: Final = 5.0
LIVES: Final = 13  # of the primary that fails
LIFE_S: Final = (10.0, 300.0)
REPORT_S: Final = 60.0  # between two unfinished reports
PATIENCE_S: Final = 200.0  # beyond the time, for the turns that are to be done at least
LOOK_S: Final = 0.25  # between two looks whether all live


class Soak:
    """One run."""

    def __init__(self, arguments: argparse.Namespace, folder: Path,
                 interrupted: threading.Event) -> None:
        self._interrupted = interrupted
        self._arguments = arguments
        self._begin_s = time.monotonic()
        self._series: dict[tuple[str, str], Series] = {}
        self._log = (arguments.output / "log").open("w", encoding="utf-8")
        self.services = []
        for name, fails in (("steady", False), ("failing", True)):
            home = folder / name
            home.mkdir()
            self.services.append(Service(
                name, fails, home, self._log, arguments.rate, arguments.seed,
                tuple(arguments.plant)))
        self.problems: list[str] = []
        self._end_s = 0.0
        self._turns_before: dict[str, int] = {}
        self._over = threading.Event()

    def run(self) -> Run:
        """From the first process to the last. SoakError: it could not be begun."""
        try:
            for service in self.services:
                service.serve()
                for kind in LOADS:
                    self._go_on()
                    service.clients.append(service.client(kind))
            self._begin_s = time.monotonic()
            self._turns_before = self._turns()
            for service in self.services:
                service.begun.touch()
            try:
                self._conduct()
                self._end_s = time.monotonic()
                self._all_leave()
            except (SoakError, DlockError, ProcessLookupError) as problem:
                self.problems.append(str(problem))
            except KeyboardInterrupt:
                self.problems.append("it was interrupted")
        finally:
            for service in self.services:
                for process in service.all():
                    if process.popen.poll() is None:
                        process.kill()
            self._log.close()
        return self.found()

    def found(self) -> Run:
        """What there is up to now."""
        observed_s = (self._end_s or time.monotonic()) - self._begin_s
        return Run(
            seconds=observed_s, warm_up_s=self._arguments.warm_up * observed_s,
            series=list(self._series.values()), problems=self.problems,
            done={process: done for one in self.services
                  for process, done in soak_report.done_by(one.folder, one.name).items()},
            lives={one.name: one.lives for one in self.services if one.fails},
            victims={one.name: one.victims for one in self.services})

    def _conduct(self) -> None:
        """Failures, victims and reports, each in its own rhythm, until the time is over. Samples
        are taken beside them, since all of these take their time on a busy machine."""
        seconds = self._arguments.seconds
        life_s = min(max(seconds / LIVES, LIFE_S[0]), LIFE_S[1])
        rhythms: list[list[Any]] = [
            [max(seconds / VICTIMS, VICTIM_S), 1.0, self._victims],
            [life_s, life_s, self._fail],
            [REPORT_S, REPORT_S, self._report],
        ]
        sampling = threading.Thread(target=self._sample_until_over)
        sampling.start()
        try:
            while (now_s := time.monotonic() - self._begin_s) < seconds or self._too_few_turns():
                every_s, due_s, act = rhythm = min(rhythms, key=lambda one: float(one[1]))
                self._go_on()
                self._look_whether_all_live()
                if now_s < due_s:
                    time.sleep(min(due_s - now_s, LOOK_S))
                    continue
                rhythm[1] = max(due_s + every_s, now_s)  # who is late does not catch up in one go
                act()
        finally:
            self._over.set()
            sampling.join()

    def _report(self) -> None:
        """What there would be to say if the run ended here."""
        run = self.found()
        judged = write(self._arguments, run, finished=False)
        print(f"{duration(run.seconds)}: {judged.word} so far", flush=True)

    def _look_whether_all_live(self) -> None:
        for service in self.services:
            for process in service.all():
                status = process.popen.poll()
                if status is not None:
                    raise SoakError(f"{process.name} ended with {status}; its errors are in the "
                                    f"log beside the results")

    def _victims(self) -> None:
        for service in self.services:
            service.victim()

    def _fail(self) -> None:
        for service in self.services:
            if service.fails:
                service.fail()

    # ---- Samples ---------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Unless a signal came whose exception got lost, as it does in a finalizer."""
        if self._interrupted.is_set():
            raise KeyboardInterrupt

    def _too_few_turns(self) -> bool:
        """Has a client process that lives for the whole time done less than it is to do at least?
        On a crowded machine a short run takes longer."""
        least = self._arguments.least_turns
        if not least or time.monotonic() - self._begin_s > self._arguments.seconds + PATIENCE_S:
            return False
        return any(turns - self._turns_before.get(who, 0) < least
                   for who, turns in self._turns().items() if not who.startswith("churn"))

    def _turns(self) -> dict[str, int]:
        """What each client process has done so far."""
        return {who: sum(done.counts.values()) for service in self.services
                for who, done in soak_report.done_by(service.folder, service.name).items()}

    def _sample_until_over(self) -> None:
        every_s = min(max(self._arguments.seconds / SAMPLES, SAMPLE_S[0]), SAMPLE_S[1])
        self._sample()
        while not self._over.wait(every_s):
            self._sample()

    def _sample(self) -> None:
        now_s = time.monotonic() - self._begin_s
        for service in self.services:
            for process in service.all():
                try:
                    found = usage(process.popen.pid)
                except ProcessLookupError:
                    continue  # a primary that was just killed; others are looked after elsewhere
                for what, value in (("memory", found.memory_bytes),
                                    ("descriptors", found.descriptors),
                                    ("threads", found.threads)):
                    self._add(process.name, what, now_s, value)
                if process is service.primary:
                    service.lives[-1].sample(found)
            self._gauges(service, now_s)
            files, size = folder_bytes(service.state)
            self._add(f"state directory, {service.name}", "files", now_s, files)
            self._add(f"state directory, {service.name}", "bytes", now_s, size)

    def _gauges(self, service: Service, now_s: float) -> None:
        """What the primary says of itself; one that recovers says less, and is left out."""
        try:
            with Admin(service.address) as admin:
                stats = admin.stats()
        except DlockError:
            return
        if stats.get("recovering"):
            return
        for name, value in stats.items():
            if name in soak_report.GAUGES:
                self._add(f"primary, {service.name}", name, now_s, value)

    def _add(self, who: str, what: str, now_s: float, value: float) -> None:
        series = self._series.setdefault((who, what), Series(who, what))
        series.samples.append((round(now_s, 3), value))

    # ---- The end ---------------------------------------------------------------------------------

    def _all_leave(self) -> None:
        """Every client gives back what it has; then a primary must have nothing left."""
        for service in self.services:
            for process in service.clients:
                if (status := process.end()) != 0:
                    self.problems.append(f"{process.name} ended with exit status {status}")
            left = self._left(service)
            if left:
                self.problems.append(
                    f"primary, {service.name}: after all clients had left there were still "
                    + ", ".join(f"{value} {name}" for name, value in left.items()))
            assert service.primary
            service.primary.popen.terminate()
            if (status := service.primary.end()) != 0:
                self.problems.append(f"{service.primary.name} ended with exit status {status}")

    def _left(self, service: Service) -> dict[str, int]:
        """Gauges that do not come down to zero within a few sessions' time: those of clients that
        were killed end by themselves."""
        deadline = time.monotonic() + END_S
        while True:
            with Admin(service.address) as admin:
                stats = admin.stats()
            left = {name: stats[name] for name in soak_report.EMPTY_AT_THE_END if stats.get(name)}
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(LOOK_S)


def write(arguments: argparse.Namespace, run: Run, *, finished: bool) -> soak_report.Judged:
    """soak.json and soak.txt; what they say."""
    facts = {
        "command": f"make soak SECONDS={arguments.seconds:g}", "finished": finished,
        "seconds": arguments.seconds, "rate": arguments.rate, "seed": arguments.seed,
        "plant": arguments.plant, "version": dlock.__version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    judged = soak_report.judge(run)
    (arguments.output / "soak.json").write_text(
        json.dumps(soak_report.as_json(run, judged, facts)) + "\n", encoding="utf-8")
    (arguments.output / "soak.txt").write_text(
        soak_report.text(run, judged, facts) + "\n", encoding="utf-8")
    return judged


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, writes, prints; returns the exit code."""
    arguments = _parse(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="dlock-soak-"))
    interrupted = threading.Event()

    def interrupt(_number: int, _frame: object) -> NoReturn:
        interrupted.set()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):  # both end all that was started
        signal.signal(number, interrupt)
    print(f"dlock soak: {arguments.seconds:g} s, results in {arguments.output}", flush=True)
    try:
        run = Soak(arguments, folder, interrupted).run()
        judged = write(arguments, run, finished=True)
    except SoakError as problem:
        print(f"dlock soak: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dlock soak: interrupted before the load had begun", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print((arguments.output / "soak.txt").read_text(encoding="utf-8"), end="")
    return judged.status


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dlock.drill.soak", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=_positive, default=3600.0, help="default 3600")
    parser.add_argument("--rate", type=_positive, default=100.0,
                        help="turns a second of each client process (default 100)")
    parser.add_argument("--seed", type=int, default=1, help="of the load (default 1)")
    parser.add_argument("--warm-up", type=float, default=0.25, metavar="SHARE",
                        help="of the time, that is not judged (default 0.25)")
    parser.add_argument("--output", type=Path, default=Path("build/soak"), metavar="FOLDER",
                        help="default build/soak")
    parser.add_argument("--least-turns", type=int, default=0, metavar="N",
                        help="go on until every client process has done so many (default 0)")
    parser.add_argument("--plant", choices=PLANTS, action="append", default=[],
                        help="a leak, to see that it is found; may be given several times")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.warm_up < 1:
        parser.error("--warm-up is at least 0 and less than 1")
    return arguments


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
