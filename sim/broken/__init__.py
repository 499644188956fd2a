"""The test of the test: deliberate faults, each of which the simulator must find within its budget.

A developer's tool, like the simulator: `python -m sim.broken`, `make sim-broken`, docs/evidence.md.
"""
