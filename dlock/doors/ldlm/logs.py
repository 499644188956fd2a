"""Log lines as ldlm-server writes them: one JSON object a line. It formats, and sets nothing up."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any, Final

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING,
                 "error": logging.ERROR}
NAMES: Final = {logging.WARNING: "WARN", logging.CRITICAL: "ERROR"}


def fields(**said: object) -> dict[str, Any]:
    """For `extra`: what stands in a line beside its message."""
    return {"fields": said}


class JsonLines(logging.Formatter):
    """time, level, msg, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        when = datetime.fromtimestamp(record.created).astimezone()
        line: dict[str, Any] = {
            "time": when.isoformat(timespec="microseconds"),
            "level": NAMES.get(record.levelno, record.levelname), "msg": record.getMessage()}
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
