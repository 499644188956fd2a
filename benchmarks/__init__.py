"""Measurements of dlock beside the floor of the machine and beside its peers, in one run.

`python -m benchmarks` from the root of the source tree; docs/benchmarks.md says what each part
measures, against which target, and how to repeat it.
"""
