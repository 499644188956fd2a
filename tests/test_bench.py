"""The benchmarks work, and notice wrong answers. Nothing here is timed: a figure that a test could
check would be a figure of the machine that runs the test."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    api_aio,
    api_deadlock,
    api_locks,
    api_process,
    machine,
    native,
    part_dss,
    part_failover,
    part_handover,
    part_judge,
    part_latency,
    part_linear,
    part_recovery,
    primary,
    processes,
    report,
    run,
    sessions,
    task,
    worker,
)
from benchmarks.plan import Plan  # noqa: E402
from dlock.cli import main as dlock_main  # noqa: E402

SECONDS = 0.05


# ---- The measuring ends --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(native.KINDS))
@pytest.mark.parametrize("held", [64, 256])
def test_the_engine_alone(kind: str, held: int) -> None:
    result = native.engine(kind, 256, held, SECONDS, batch=64)
    assert result.count > 0
    assert result.count % held == 0
    assert result.elapsed_s >= SECONDS


def test_bare_words_give_the_same_answers() -> None:
    assert native.engine("atomic", 256, 64, SECONDS, batch=64, bare=True).count > 0


@pytest.mark.parametrize("wrong", [
    {"locks": 0}, {"held": 100}, {"held": 512}, {"batch": 2048}, {"sessions": 0},
])
def test_an_impossible_engine_is_refused(wrong: dict[str, int]) -> None:
    arguments = {"locks": 256, "held": 64, "batch": 64, "sessions": 4, **wrong}
    with pytest.raises(OSError, match="Invalid argument"):
        native.engine("atomic", arguments.pop("locks"), arguments.pop("held"), SECONDS,
                      **arguments)  # type: ignore[arg-type]


def test_memory_grows_by_records() -> None:
    """In a process of its own: in one that has lived, freed memory is resident already."""
    program = "from benchmarks import native; print(native.engine_memory(100_000))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    found = ast.literal_eval(done.stdout)
    assert 0 < found["lock"] < 256
    assert 0 < found["holder"] < 256
    assert 0 < found["waiter"] < 512


@pytest.mark.parametrize(("wait", "connections", "window"), [
    ("block", 1, 1), ("poll", 1, 1), ("poll", 1, 300), ("block", 5, 7), ("poll", 5, 7),
])
def test_echoes_come_back(wait: str, connections: int, window: int) -> None:
    with processes.echo_server(wait, connections) as server:
        sockets = [processes.connect(server) for _ in range(connections)]
        try:
            result = native.load([one.fileno() for one in sockets], window, SECONDS, wait,
                                 sampled=True)
        finally:
            for one in sockets:
                one.close()
    assert result.count == sum(result.counts) > 0
    assert 0 < len(result.samples_ns) <= result.count


# ---- Against a server ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> object:
    with processes.dlock_server("adaptive") as address:
        yield address


@pytest.mark.parametrize("kind", ["atomic", "rw", "rw shared", "fair", "semaphore"])
@pytest.mark.parametrize("wait", ["block", "poll"])
def test_load_of_pairs(server: processes.Address, kind: str, wait: str) -> None:
    with sessions.connections(server, 3, 5, kind=kind) as (fds, locks):
        result = native.load(fds, 5, SECONDS, wait, locks=locks)
    assert result.count == sum(result.counts) > 0
    assert result.refused == 0


def test_load_on_one_name_waits_at_the_server(server: processes.Address) -> None:
    with sessions.connections(server, 8, 1, shared_name=True, wait_ms=20000) as (fds, locks):
        result = native.load(fds, 1, SECONDS, "poll", locks=locks, hand_over=True, sampled=True)
    assert result.count > 0
    assert result.refused == 0
    assert max(result.counts) - min(result.counts) <= 4  # first come, first served
    assert len(result.samples_ns) > 0


def test_who_only_tries_is_refused(server: processes.Address) -> None:
    with sessions.connections(server, 8, 1, shared_name=True) as (fds, locks):
        result = native.load(fds, 1, 4 * SECONDS, "poll", locks=locks)
    assert result.count > 0
    assert result.refused > 0


def test_a_wrong_answer_is_noticed(server: processes.Address) -> None:
    with sessions.connections(server, 1, 2) as (fds, locks):
        other = native.Locks(locks.client_ids, [locks.lock_ids[0], 999_999], locks.slots)
        with pytest.raises(RuntimeError, match="wrong answers"):
            native.load(fds, 2, SECONDS, "block", locks=other)


def test_contending_threads_share(server: processes.Address) -> None:
    result, _ = part_handover.threads(server, 4, "adaptive", 4 * SECONDS, "fair")
    assert result.count == sum(result.counts) > 0
    assert result.refused == 0
    assert 0 < len(result.samples_ns) <= result.count


@pytest.mark.parametrize(("task", "arguments"), [
    ("dlock_pairs", {}),
    ("dlock_pairs", {"waits": True}),
    ("dlock_batches", {"size": 31}),
    ("dlock_in_flight", {"size": 200}),
])
def test_python_workers(server: processes.Address, task: str, arguments: dict[str, int]) -> None:
    found = part_latency.worker_on(server, task, wait="adaptive", seconds=SECONDS, name=task,
                                   **arguments)
    assert found["count"] > 0
    assert 0 < found["p50_us"] <= found["p99_us"]
    assert found["server_cores"] > 0


def test_a_worker_that_fails_is_noticed(server: processes.Address) -> None:
    with (
        processes.Worker("dlock_pairs", None, {"host": server.host, "port": 1}) as broken,
        pytest.raises(RuntimeError, match="did not get ready"),
    ):
        broken.wait("ready")


def test_a_worker_does_not_take_every_answer() -> None:
    with pytest.raises(task.WrongAnswerError):
        task.expect([True, None], [True, True])


def test_every_task_has_a_name_of_its_own() -> None:
    assert len(worker.TASKS) == len(worker.ALL)


# ---- The Python API ------------------------------------------------------------------------------

QUICK = Plan(1, SECONDS, quick=True)


def by_name(figures: report.Figures) -> dict[str, report.Figure]:
    return {figure.name: figure for figure in figures}


def test_what_takes_turns_is_compared_with_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(task.sys, "stdin", io.StringIO("go\n" * 2))
    around: list[str] = []

    @contextlib.contextmanager
    def held() -> Iterator[None]:
        around.append("in")
        yield
        around.append("out")

    found = task.in_turn([task.Variant("short", lambda: time.sleep(0.0005)),
                          task.Variant("long", lambda: time.sleep(0.05), held)], 0.03)
    assert capsys.readouterr().out.split() == ["ready", "warm", "done"]
    assert found["variants"]["short"]["more_us"] == 0
    assert found["variants"]["long"]["more_us"] > 1000
    assert found["variants"]["long"]["p50_us"] > found["variants"]["short"]["p50_us"]
    assert around == ["in", "out"] * 4  # once before, and in each of three rounds


def test_lock_objects_beside_the_mirror(server: processes.Address) -> None:
    figures = report.Figures("api")
    api_locks.pairs(QUICK, figures, server, "adaptive")
    found = by_name(figures)
    assert all(found[f"{name}, adaptive"].value > 0 for name in api_locks.NAMED.values())
    assert [name for name, one in found.items() if one.target] == [
        "with client.lock(name), adaptive, more than the mirror's"]


def test_a_new_name_takes_one_exchange(server: processes.Address) -> None:
    figures = report.Figures("api")
    api_locks.first_use(QUICK, figures, server)
    assert by_name(figures)["first use: exchanges on the control link"].value == 1


def test_names_that_are_used_once_do_not_stay() -> None:
    figures = report.Figures("api")
    with processes.dlock_server("adaptive") as alone:
        api_locks.names(QUICK, figures, alone)
    found = by_name(figures)
    known = found["2,000 names, each once: known at the client in the end"]
    assert known.met
    assert found["2,000 names, each once: locks at the server in the end"].value == known.value


def test_tasks_of_an_event_loop(server: processes.Address) -> None:
    figures = report.Figures("api")
    api_aio.one_task(QUICK, figures, server)
    assert api_aio.crowds(QUICK, figures, server) > 0
    api_aio.waiting(QUICK, figures, server)
    found = by_name(figures)
    assert found["50 tasks, one name"].value > 0
    assert found["500 tasks that wait: client's memory"].value > 0


def test_a_redis_that_is_missing_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    def look(name: str) -> None:
        looks.append(name)
        _nothing_here(name)

    monkeypatch.setattr(api_aio.peers, "need_module", look)
    figures, redis = report.Figures("api"), api_aio.Redis()
    for _ in range(2):
        api_aio.redis_crowds(QUICK, figures, redis, 1.0)
    assert looks == ["redis"]
    assert [figure.note for figure in figures] == ["skipped: no redis"]


def test_what_the_check_for_deadlocks_looks_at() -> None:
    with api_deadlock.Waits("queue", 100) as queue, api_deadlock.Waits("chain", 100) as chain:
        for waits in (queue, chain):
            _, steps = waits.ask(0, 0.001)
            assert steps == 0
        _, in_queue = queue.ask(api_deadlock.CHECK, 0.001)
        _, in_chain = chain.ask(api_deadlock.CHECK, 0.001)
    assert 0 < in_queue < 10  # a long queue is not walked
    assert in_chain > 100


def test_processes_on_one_lock_and_a_thread_that_holds_another(server: processes.Address) -> None:
    figures = report.Figures("api")
    api_deadlock.nested(QUICK, figures, server)
    api_deadlock.contended(QUICK, figures, server)
    assert all(one.runs for one in figures)


def test_renewed_holds_and_commands(server: processes.Address) -> None:
    figures = report.Figures("api")
    api_process.renewal(QUICK, figures, server)
    api_process.command(QUICK, figures, server)
    found = by_name(figures)
    assert found["100 leased holds: requests"].value > 0
    assert found["dlock run NAME -- true"].value > 0


# ---- A primary that dies ------------------------------------------------------------------------


def test_a_recovery_of_a_few_clients() -> None:
    figures = report.Figures("recovery")
    part_recovery.measure(QUICK, figures)
    found = {name.partition(": ")[2]: one for name, one in by_name(figures).items()}
    assert found["lost"].value == 0
    assert found["exec to READY"].value > found["exec to listening"].value > 0
    assert found["exec to READY"].target
    assert found["exec to every hold confirmed"].value > 0


def test_shares_are_as_even_as_can_be() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = primary.Primary(Path(folder), session_ttl_s=1, max_locks=1, max_clients=1)
        for clients, locks, processes in ((1000, 51_200, 32), (10, 1000, 32), (7, 3, 2)):
            shares = part_recovery.shares(
                server, part_recovery.Shape(clients, locks, processes))
            assert len(shares) == min(clients, processes)
            for what, whole in (("clients", clients), ("locks", locks)):
                counts = [one[what] for one in shares]
                assert sum(counts) == whole
                assert max(counts) - min(counts) <= 1


def test_a_failover_under_clients_that_work() -> None:
    figures = report.Figures("failover")
    part_failover.failover(QUICK, figures, contended=True)
    found = by_name(figures)
    assert found["8 clients, one name: exec to listening"].value > 0
    assert found["8 clients, one name: kill to the first grant"].value > 0


def test_durable_locks_are_measured() -> None:
    figures = report.Figures("dss")
    part_dss.of_dlock(QUICK, figures)
    assert all(one.value > 0 for one in figures)
    assert len(list(figures)) == 1 + 2 * len(part_dss.TARGETS)


def test_the_judge_of_a_drill_is_measured() -> None:
    figures = report.Figures("judge")
    part_judge.measure(QUICK, figures)
    assert all(one.value > 0 for one in figures)
    assert len(list(figures)) == 2


def test_the_checker_of_histories_is_measured() -> None:
    figures = report.Figures("linear")
    part_linear.measure(QUICK, figures)
    assert all(one.value > 0 for one in figures)
    assert len(list(figures)) == 4


# ---- The figures ---------------------------------------------------------------------------------


def test_figures_know_their_targets() -> None:
    figures = report.Figures("part")
    for value in (10.0, 30.0, 20.0):
        figures.row("rate", "a second", report.at_least(15)).add(value, 0.5, 1.0)
    figures.row("time", "us", report.at_most(15)).add(20)
    figures.row("plain", "us").add(1)
    figures.skip("peer", "it is not here")
    rate, late, plain, peer = figures
    assert (rate.value, rate.met, late.met, plain.met, peer.met) == (20, True, False, None, None)
    shown = report.table(figures)
    assert "| rate | 20 | a second | 10 .. 30 | 0.50 | 1.00 | >= 15 | met |" in shown
    assert "MISSED" in shown
    assert "skipped: it is not here" in shown


def test_jain() -> None:
    assert part_handover.jain([5, 5, 5, 5]) == pytest.approx(1)
    assert part_handover.jain([8, 0, 0, 0]) == pytest.approx(1 / 4)
    assert part_handover.jain([0, 0]) == 0


def test_a_missing_peer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_latency.peers, "need_module", _nothing_here)
    figures = report.Figures("latency")
    part_latency.measure(Plan(1, SECONDS, quick=True), figures)
    skipped = [figure.name for figure in figures if "skipped" in figure.note]
    assert skipped == list(part_latency.PEERS)
    assert any(figure.name.startswith("dlock adaptive /") for figure in figures)


def _nothing_here(name: str) -> None:
    raise part_latency.peers.MissingError(f"no {name}")


def test_the_command_writes_table_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results" / "figures.json"
    code = run.main(["--quick", "--output", str(output), "engine", "floor", "handover"])
    assert code in (0, 1)
    found = json.loads(output.read_text())
    assert found["machine"]["quick"] is True
    assert {figure["part"] for figure in found["figures"]} == {"engine", "floor", "handover"}
    assert all(len(figure["runs"]) == 1 for figure in found["figures"])
    shown = capsys.readouterr().out
    assert "### handover" in shown
    assert str(output) in shown


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["speed"])
    assert "no such part: speed" in capsys.readouterr().err


def test_too_few_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--names", "1", "api"])
    assert "--names is 2 or more" in capsys.readouterr().err


def test_cpu_time_of_a_process_grows() -> None:
    with processes.dlock_server("poll") as polling:
        before = machine.cpu_seconds(polling.pid)
        part_latency.worker_on(polling, "dlock_pairs", wait="block", seconds=SECONDS, name="cpu")
        assert machine.cpu_seconds(polling.pid) > before


# ---- dlock bench ---------------------------------------------------------------------------------

ROWS = ["atomic", "rw, reading", "rw, writing", "fair", "atomic, all on one name",
        "fair, all on one name", "fetch-and-add"]


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "import sys; from dlock.cli import main; sys.exit(main())",
               "bench", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


def test_dlock_bench_with_a_server_of_its_own() -> None:
    done = bench("--seconds", "0.02", "--clients", "2", "--batch", "3", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert [row["name"] for row in found["rows"]] == ROWS
    for row in found["rows"]:
        assert row["clients"] == 2
        assert row["batch"] == (1 if "all on" in row["name"] or "fetch" in row["name"] else 3)
        assert row["per_second"] > 0
        assert 0 < row["p50_us"] <= row["p99_us"]


def test_dlock_bench_at_a_running_server(server: processes.Address) -> None:
    done = bench("--seconds", "0.02", "--connect", f"{server.host}:{server.port}")
    assert (done.returncode, done.stderr) == (0, "")
    for name in ROWS:
        assert name in done.stdout


def test_dlock_bench_without_a_server_says_so() -> None:
    done = bench("--connect", "127.0.0.1:1", "--seconds", "0.02")
    assert done.returncode == 1
    assert "no server answers at 127.0.0.1:1" in done.stderr


@pytest.mark.parametrize("words", [
    ["--clients", "0"], ["--batch", "32"], ["--seconds", "0"], ["--wait", "sleep"],
])
def test_dlock_bench_refuses_what_is_out_of_range(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        dlock_main(["bench", *words])
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err
