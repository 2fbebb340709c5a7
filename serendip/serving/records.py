"""What is written down of every call beside its numbers: a line of the log, a span.

Knows no gRPC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.rpc import code_pb2

from serendip.core import SerendipError
from serendip.serving.handlers import Call
from serendip.serving.logs import CallLog
from serendip.serving.tracing import Tracer


@dataclass(frozen=True)
class Records:
    """The log of calls and the tracer, either of which may be off."""

    log: CallLog | None
    tracer: Tracer | None

    def begin(self, method: str, call: Call) -> Any:
        """Notes a call that begins; returns what ``end`` wants to know."""
        return None if self.tracer is None else self.tracer.start(method, call)

    def end(
        self,
        begun: Any,
        method: str,
        call: Call,
        code: str,
        seconds: float,
        who: dict[str, str],
        error: BaseException | None = None,
    ) -> None:
        """Notes how it ended.

        Args:
            method: /SERVICE/METHOD.
            code: the name of its status.
            who: as CallLog.write.
            error: what its status was made from.
        """
        if self.tracer is not None:
            self.tracer.end(begun, code, code_pb2.Code.Value(code))
        if self.log is not None:
            field = error.field if isinstance(error, SerendipError) else ""
            self.log.write(method, call, code, seconds, who, field)

    def close(self) -> None:
        """Sends what is not sent yet; blocks for some seconds at the most."""
        if self.tracer is not None:
            self.tracer.close()
