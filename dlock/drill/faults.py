"""The menu: every fault that a drill can inject, in the order in which `dlock drill --list` tells
them. What each does is in the files `faults_*.py`."""

from __future__ import annotations

from typing import Final

from dlock.drill.fault import Fault
from dlock.drill.faults_clients import ClientNeverBack, ReconnectStorm, StopClient
from dlock.drill.faults_clocks import ClockStep, WallClock
from dlock.drill.faults_network import Cut, LostReplies, Partition
from dlock.drill.faults_primary import KillInBatch, KillInRecovery, KillPrimary, StopPrimary

MENU: Final[tuple[Fault, ...]] = (
    KillPrimary(), KillInBatch(), KillInRecovery(), StopPrimary(), StopClient(), ClientNeverBack(),
    Cut(), LostReplies(), Partition(), ClockStep(), WallClock(), ReconnectStorm())
BY_NAME: Final = {fault.name: fault for fault in MENU}
