"""dlock: a lock service for programs that run on many nodes of a cluster."""

__version__ = "0.1.0"
