"""What a server says on standard error: a line an event, as text or as JSON; and of its calls.

A line of a call has no metadata, no request and no message of an error: a message may name an item
of a history. Standard library logging; knows no gRPC.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from serendip.serving.handlers import Call

TEXT_FORMAT = "%(asctime)s %(levelname)s %(message)s"
MOST_ERRORS_PER_S = 100  # lines; a flood of refused calls must not become a flood of lines

_log = logging.getLogger("serendip.calls")

# The server's fault, or nobody knows whose.
_FAULTS = frozenset(("UNKNOWN", "INTERNAL", "DATA_LOSS"))


class LogFormat(StrEnum):
    """How lines look."""

    TEXT = "text"
    JSON = "json"


class LogCalls(StrEnum):
    """Which calls have a line."""

    NONE = "none"
    ERRORS = "errors"
    ALL = "all"


def configure_logging(log_format: LogFormat) -> None:
    """Sends what this process logs to standard error; for a program, not for a library."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _JsonLines() if log_format is LogFormat.JSON else logging.Formatter(TEXT_FORMAT)
    )
    logging.basicConfig(handlers=[handler])


class CallLine(dict[str, Any]):
    """What is said of one call; a line of text if it is printed."""

    def __str__(self) -> str:
        return " ".join(["call", *[f"{key}={value}" for key, value in self.items()]])


class CallLog:
    """Writes a line a call.

    Args:
        calls: which; not NONE.
    """

    def __init__(self, calls: LogCalls) -> None:
        self._all = calls is LogCalls.ALL
        self._second = 0
        self._lines = 0  # of this second
        self._left_out = 0
        _log.setLevel(logging.INFO)

    def write(
        self, method: str, call: Call, code: str, seconds: float, who: dict[str, str], field: str
    ) -> None:
        """Says how a call ended.

        Args:
            method: /SERVICE/METHOD.
            who: the client's name and its address without the port, as far as they are known.
            field: what was wrong with the request, by its name; empty: nothing.
        """
        if not self._all and (code == "OK" or self._too_many()):
            return
        line = CallLine(
            method=method, code=code, ms=round(1000 * seconds, 3), request_id=call.request_id, **who
        )
        if call.rows:
            line["rows"] = call.rows
        if call.version:
            line["version"] = call.version
        if field:
            line["field"] = field
        if self._left_out:
            line["left_out"] = self._left_out
            self._left_out = 0
        if code == "OK":
            level = logging.INFO
        else:
            level = logging.ERROR if code in _FAULTS else logging.WARNING
        _log.log(level, line)

    def _too_many(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= MOST_ERRORS_PER_S:
            return False
        self._left_out += 1
        return True


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": at, "level": record.levelname}
        if isinstance(record.msg, CallLine):
            line |= record.msg
        else:
            line |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
