"""What the benchmarks of RDMA read and count; the calls of C are made over TCP here, since they do
not know over which link they go. Nothing is timed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import native, peers, perftest, processes, sessions  # noqa: E402
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
