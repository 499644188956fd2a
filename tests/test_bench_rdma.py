"""What the benchmarks of RDMA read and count; the calls of C are made over TCP here, since they do
not know over which link they go. Nothing is timed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    linked,
    native,
    part_rdma,
    peers,
    perftest,
    processes,
    report,
    sessions,
)
from benchmarks.plan import Plan  # noqa: E402
from dlock._core import lib  # noqa: E402

SECONDS = 0.05

# As ib_send_lat 6.06 prints it, shortened at its beginning.
SENT = """\
 remote address: LID 0000 QPN 0x0011 PSN 0x12c3
 GID: 00:00:00:00:00:00:00:00:00:00:255:255:10:66:00:01
---------------------------------------------------------------------------------------
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]    \
t_stdev[usec]   99% percentile[usec]   99.9% percentile[usec]
 64      5000          12.50          10591.78      23.80    \t       490.28      \t1334.93\
\t\t5999.99 \t\t8803.91
---------------------------------------------------------------------------------------
"""


# ---- perftest ------------------------------------------------------------------------------------


def test_the_table_of_perftest_is_read() -> None:
    assert perftest.parse(SENT) == perftest.Latency(23.80, 5999.99, 5000)


def test_of_several_sizes_the_last_is_read() -> None:
    row = SENT.splitlines()[-2]
    assert row.startswith(" 64 ")
    later = row.replace("64", "128", 1).replace("23.80", "24.80")
    assert perftest.parse(SENT.replace(row, f"{row}\n{later}")).typical_us == 24.80


@pytest.mark.parametrize("output", [
    "", "Couldn't connect to 127.0.0.1:18515\n", SENT.split(" 64 ")[0],
    SENT.replace("t_typical[usec]", "t_median[usec]"), SENT.replace("23.80", "nan.80"),
])
def test_what_is_no_table_is_shown(output: str) -> None:
    with pytest.raises(perftest.OutputError) as problem:
        perftest.parse(output)
    assert output.strip() in str(problem.value)


def test_without_perftest_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(peers.MissingError, match="apt-get install perftest"):
        perftest.need_programs()


def test_events_and_sizes_are_asked_for() -> None:
    words = perftest.command("ib_send_lat", perftest.Device("rxe0", 1, 3), 4711, iterations=9,
                             events=True, extra=("-s", "64"))
    assert words == ["ib_send_lat", "-d", "rxe0", "-i", "1", "-x", "3", "-F", "-p", "4711",
                     "-n", "9", "-s", "64", "-e"]


def test_a_program_that_ends_at_once_is_no_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(perftest.OutputError, match="never listened"):
        perftest.measure("false", perftest.Device("none", 1, 0), iterations=1)


# ---- One call after the other --------------------------------------------------------------------


@pytest.mark.parametrize("wait", ["block", "poll"])
@pytest.mark.parametrize("clients", [1, 5])
def test_pairs_of_the_client_library(clients: int, wait: str) -> None:
    with (processes.dlock_server("adaptive") as server,
          sessions.library_clients(server, clients, wait, [str(k) for k in range(clients)],
                                   "atomic") as (pointers, lock_ids)):
        found = native.calls("lock", pointers, lock_ids, SECONDS)
        assert found.result.count == len(found.took_ns) == len(found.unlock_ns) > 0
        assert found.pair_us >= max(found.took_us, found.unlock_us) > 0
        # Everything was given back.
        assert native.calls("lock", pointers, lock_ids[::-1], SECONDS).result.count > 0


def test_an_object_that_others_change_is_noticed() -> None:
    with (processes.dlock_server("adaptive") as server,
          sessions.library_clients(server, 2, "adaptive", [], "atomic") as (pointers, _)):
        for pointer in pointers:
            lib.dlk_client_add_object(pointer, 1, 0)
        with pytest.raises(RuntimeError, match="wrong answers"):
            native.calls("faa", pointers, [1, 1], SECONDS)  # there is no such object


# ---- The part ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", ["block", "adaptive"])
def test_both_languages_are_measured_over_one_link(wait: str) -> None:
    with (processes.dlock_server(wait, transport="tcp") as server,
          linked.linked(server, 3, "name", wait, "tcp") as clients):
        for work in native.CALL_WORKS:
            assert linked.in_c(clients, work, SECONDS).result.count > 0
            assert linked.in_c(clients[:1], work, SECONDS).result.count > 0
        found = clients[0].in_python(SECONDS)
        assert sorted(found) == sorted(part_rdma.OPERATIONS)
        assert min(found.values()) > 0


def test_a_client_over_something_else_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLOCK_TRANSPORT", "tcp")
    with (processes.dlock_server("adaptive", transport="tcp") as server,
          pytest.raises(RuntimeError, match="goes over tcp")):
        linked.Linked(server, "name", "adaptive", "auto")


def test_goals_are_compared_within_a_run() -> None:
    figures = report.Figures("rdma")
    floor = {"send": 20.0, "faa": 16.0, "cas": 16.0, "read": 26.0}
    of_c = {"verbs": {"lock": 24.0, "unlock": 26.0, "pair": 50.0, "faa": 20.0, "cas": 20.0,
                      "read": 26.0},
            "tcp": {"lock": 50.0, "unlock": 50.0, "pair": 100.0, "faa": 50.0, "cas": 50.0,
                    "read": 50.0}}
    of_python = {"verbs": dict.fromkeys(part_rdma.OPERATIONS, 46.0),
                 "tcp": dict.fromkeys(part_rdma.OPERATIONS, 70.0)}
    part_rdma.show(figures, "poll", floor, of_c, of_python)
    part_rdma.compare(figures, "poll", floor, of_c, of_python)
    part_rdma.compare(figures, "block", floor, of_c, of_python)
    assert {figure.name: (figure.value, figure.met) for figure in figures
            if figure.target is not None} == {
        "both poll: lock operation, verbs, C / two of ib_send_lat's": (1.25, True),
        "both poll: fetch-and-add, verbs, C / ib_atomic_lat": (1.25, False),
        "both poll: lock operation, C, tcp / verbs": (2.0, True),
        "both poll: what Python adds, verbs / tcp": (1.05, True),
    }


def test_without_a_device_the_part_says_what_to_do() -> None:
    figures = report.Figures("rdma")
    part_rdma.measure(Plan(1, SECONDS, quick=True, device="none0"), figures)
    (skipped,) = figures
    assert "make guest" in skipped.note
