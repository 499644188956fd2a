"""How the server logs: events with fields."""

from __future__ import annotations

import logging
from collections.abc import Mapping

_log = logging.getLogger("dlock.control")


def log_event(level: int, event: str, fields: Mapping[str, object]) -> None:
    """One event with its fields, as text and as `extra` for handlers that keep fields."""
    if _log.isEnabledFor(level):
        text = "".join(f" {name}={value!r}" for name, value in fields.items())
        _log.log(level, "%s%s", event, text, extra={"event": event, "fields": fields})
