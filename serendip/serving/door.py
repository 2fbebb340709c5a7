"""Where a method's calls are counted, timed and written down, whichever front brings them.

Knows no gRPC.
"""

from __future__ import annotations

from typing import Any

from serendip.serving.handlers import Call
from serendip.serving.records import Records
from serendip.serving.telemetry import MethodMeter


class Door:
    """One method's.

    Args:
        name: /SERVICE/METHOD.
        records: None: nothing is written down.
    """

    __slots__ = ("_meter", "_name", "_records", "asks_who")

    def __init__(self, name: str, meter: MethodMeter, records: Records | None) -> None:
        self._name = name
        self._meter = meter
        self._records = records
        self.asks_who = records is not None

    def begin(self, call: Call) -> tuple[float, Any]:
        """Notes a call that begins; returns what ``end`` wants to know."""
        started = self._meter.start()
        return started, None if self._records is None else self._records.begin(self._name, call)

    def end(
        self,
        begun: tuple[float, Any],
        call: Call,
        code: str,
        who: dict[str, str],
        error: BaseException | None = None,
    ) -> float:
        """Notes how it ended; returns the seconds that it took.

        Args:
            code: the name of its status.
            who: as CallLog.write; read only where ``asks_who``.
            error: what its status was made from.
        """
        seconds = self._meter.end(begun[0], code)
        if self._records is not None:
            self._records.end(begun[1], self._name, call, code, seconds, who, error)
        return seconds
