"""The simulator: the whole of dlock in one process and one thread, under virtual time, from a seed.

A developer's tool, like benchmarks/; it does not ship. docs/simulator.md says what is simulated.
`python -m sim` is where to begin.
"""
