"""How often and how long to measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """`runs`: medians are over these; `seconds`: of each single measurement. `quick`: small tables
    and crowds, to see that it works. `names`: how many are used once each. `large`: also what takes
    gigabytes and minutes. `device`: the RDMA device to use; None: what dlock would choose."""

    runs: int
    seconds: float
    quick: bool = False
    names: int = 20_000
    large: bool = False
    device: str | None = None
