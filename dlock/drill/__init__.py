"""Drills: a primary and its clients under load, faults on purpose, and what came of it.

`dlock drill` (dlock/cli/drill.py) is the way in. `dlock/drill/records.py` declares what every
process of a drill writes down; the parts that make it happen write it, the judge reads it.
"""
