"""The faults: where each stands, what it breaks, and in which worlds or histories it is looked for.

A fault is an exact piece of a file, which must be there exactly once, and what stands in its place.
When the code changes, the piece changes with it: `python -m sim.broken` says which one is not there
any more. `seeds` is at least three times as many worlds as were needed when it was written
(docs/evidence.md has the table), so that a change of the code does not hide what is planted.

What no world comes to, because a server that is right in all else rules it out, is looked for by a
test that plays random histories against an oracle: it goes to one part directly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True)
class Fault:
    """See the file. `breaks`: what goes wrong, for people; `befalls`: only worlds which these
    faults may befall are played; `histories`: the test that plays so many histories in the place of
    worlds, "": the simulator looks for it."""

    name: str
    breaks: str
    file: str
    old: str
    new: str
    seeds: int = 60
    befalls: tuple[str, ...] = ()
    histories: str = ""

    def with_seeds(self, seeds: int) -> Fault:
        """The same with another budget."""
        return replace(self, seeds=seeds)


MERGES: Final = "tests/test_engine_claims.py::test_the_order_of_claims_means_nothing"
RECOVERIES: Final = "tests/test_engine_claims.py::test_a_recovery_goes_as_the_law_says"
LIVES: Final = "tests/test_recovery_random.py::test_any_history"

FAULTS: Final = (
    Fault(
        "lease-the-wrong-way",
        "leases that run are taken away, those that have ended are kept",
        "native/engine_queue.c",
        "        if (entry->end_ns <= now_ns) {\n            dlk_entry_remove",
        "        if (entry->end_ns >= now_ns) {\n            dlk_entry_remove",
    ),
    Fault(
        "anybody-unlocks",
        "an unlock ends the hold that its handle names, whoever has it by now",
        "native/engine_lock.c",
        "    if (entry == NULL || entry->state != DLK_ENTRY_HELD"
        " || entry->token != request->token) {",
        "    if (request->entry < engine->entries_high\n"
        "        && engine->entries[request->entry].lock == request->slot) {\n"
        "        entry = &engine->entries[request->entry];\n    }\n"
        "    if (entry == NULL || entry->state != DLK_ENTRY_HELD) {",
    ),
    Fault(
        "cancel-forgets-the-grant",
        "a cancel that crosses its grant leaves the hold behind",
        "native/engine_lock.c",
        "    if (entry != NULL) {\n        dlk_entry_remove(engine, entry);\n"
        "        dlk_lock_settle(engine, lock, now_ns);\n    }\n    dlk_reply_push",
        "    if (entry != NULL && entry->state != DLK_ENTRY_HELD) {\n"
        "        dlk_entry_remove(engine, entry);\n"
        "        dlk_lock_settle(engine, lock, now_ns);\n    }\n    dlk_reply_push",
    ),
    Fault(
        "epoch-not-checked",
        "a primary that looks whether it was replaced does not see the higher epoch",
        "dlock/control/state_dir.py",
        "            if highest > own.epoch:\n",
        "            if highest < own.epoch:\n",
        befalls=("take-over",),
    ),
    Fault(
        "lease-from-receipt",
        "a client counts a lease from when the grant came, not from when it asked",
        "native/client_book_end.c",
        "    dlk_book_renew(book, pending->sent_ns, reply->result, now_ns);\n",
        "    dlk_book_renew(book, pending->sent_ns, reply->result, now_ns);\n"
        "    pending->sent_ns = now_ns;\n",
    ),
    Fault(
        "session-from-receipt",
        "a client counts its session from when an answer came, not from when it asked",
        "native/client_book_end.c",
        "    dlk_book_renew(book, pending->sent_ns, reply->result, now_ns);\n",
        "    dlk_book_renew(book, now_ns, reply->result, now_ns);\n",
    ),
    Fault(
        "sending-renews",
        "what the transport took counts as if the server had answered: a one-sided completion",
        "native/client_keep.c",
        "    dlk_wire_flush(client);\n    client->ping_sent_ns = now_ns;\n",
        "    dlk_wire_flush(client);\n"
        "    dlk_book_renew(&client->book, now_ns, DLK_RESULT_DONE, now_ns);\n"
        "    client->ping_sent_ns = now_ns;\n",
    ),
    Fault(
        "claimed-lease-cut-short",
        "after a recovery a claimed lease runs for a millisecond",
        "native/engine_claim.c",
        "            run_lease(engine, entry, lease_ms > least_ms ? lease_ms : least_ms, now_ns);",
        "            run_lease(engine, entry, lease_ms > least_ms ? 1 : 1, now_ns);",
        seeds=100,
        befalls=("kill-primary",),
    ),
    Fault(
        "kept-wait-forgotten",
        "a wait that a primary was not ready for is never asked again",
        "native/client_book_debts.c",
        "        } else if (book->pending[i].state == DLK_OP_STATE_PARKED_KEPT) {\n"
        "            dlk_pending_set(book, i, DLK_OP_STATE_PARKED);\n        }\n",
        "        }\n",
        befalls=("kill-primary",),
    ),
    Fault(
        "roster-not-copied",
        "a primary begins with an empty roster: who comes after it waits for nobody",
        "dlock/control/state_dir.py",
        "_machine(), living,\n                      roster, any(",
        "_machine(), living,\n                      {}, any(",
        befalls=("kill-primary",),
    ),
    Fault(
        "nobody-is-awaited",
        "a new primary does not wait for those who stay away",
        "dlock/control/registry_recovery.py",
        "        return self.started_ns + wait_ms * MS_NS\n",
        "        return self.started_ns + wait_ms\n",
        befalls=("kill-primary", "silence"),
    ),
    Fault(
        "back-before-it-has-claimed",
        "a client counts as back when it has come, before it has said what it holds",
        "dlock/control/registry_recovery.py",
        "            self._become(one, State.CAME)\n",
        "            self._become(one, State.BACK)\n",
        befalls=("kill-primary",),
    ),
    Fault(
        "newcomers-overtake",
        "a request that goes well with the holders is served before those who wait",
        "native/engine_lock.c",
        "    if (lock->queue_head != DLK_NONE) {\n        lock_by_queue(",
        "    if (lock->queue_head != DLK_NONE && !lock_compatible(lock, request->mode)) {\n"
        "        lock_by_queue(",
    ),
    Fault(
        "re-entry-by-anybody",
        "a reentrant lock that one task holds is entered by another task",
        "dlock/aio/kinds.py",
        "            if handle.actor == actor | self._apart:\n",
        "            if handle.actor or actor:\n",
        seeds=120,
    ),
    Fault(
        "loss-not-told",
        "a hold that the server does not know any more is forgotten without a word",
        "native/client_book_notice.c",
        "    dlk_book_tell(book, hold,\n                  result == DLK_RESULT_BROKEN ? "
        "DLK_NOTICE_BROKEN : DLK_NOTICE_LOST);\n",
        "",
    ),
    Fault(
        "merge-by-arrival",
        "of two claims that exclude each other the first to come is believed",
        "native/engine_merge.c",
        "    bool changed = raise_floor(engine, lock, floor, as->mode, &rank, now_ns);\n",
        "    if (!slots && lock->n_exclusive != 0 && known_hold(engine, as) == NULL) {\n"
        "        return DLK_RESULT_NOT_HELD;\n    }\n"
        "    bool changed = raise_floor(engine, lock, floor, as->mode, &rank, now_ns);\n",
        histories=MERGES,
    ),
    Fault(
        "low-token-wins",
        "a claim that is not believed is forgotten: an older hold than its own is believed",
        "native/engine_merge.c",
        "    bool changed = raise_floor(engine, lock, floor, as->mode, &rank, now_ns);\n",
        "    bool changed =\n"
        "        (live || (claim->leased == 0 && believed))\n"
        "        && raise_floor(engine, lock, floor, as->mode, &rank, now_ns);\n",
        histories=MERGES,
    ),
    Fault(
        "late-claim-accepted",
        "a hold is claimed of a lock that has been given to others since the recovery began",
        "native/engine_merge.c",
        "(live || (claim->leased == 0 && believed)) && floor->moved == 0\n",
        "(live || (claim->leased == 0 && believed))\n",
        histories=RECOVERIES,
    ),
    Fault(
        "evicted-is-taken-back",
        "who was given up in a recovery may come again, and claim",
        "dlock/control/registry_recovery.py",
        "_OUT: Final = (State.EVICTED, State.LEFT, State.CUT)\n",
        "_OUT: Final = (State.LEFT, State.CUT)\n",
        seeds=1100,
        histories=LIVES,
    ),
)
