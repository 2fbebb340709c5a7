"""Child processes that decode media: beside the model, and each a cell that may burst.

A decoder that crashes takes its process with it. Every process has one item in hand, so that the
suspect is known; it is tried again alone, and quarantined when it has brought several down.
Knows no model.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType

from serendip.core import Item, MediaError
from serendip.planning.prompt import Content, Style, load_content
from serendip.planning.rows import UNSURE

_DEATHS = 3  # of processes with the item in hand; one may be somebody else's doing
_PATIENCE_S = 120.0  # for one item

Load = Callable[[Item, Style, int], Content]

# A server process forks the others: what it has imported they need not import again.
processes = multiprocessing.get_context("forkserver")


class Decoders:
    """A fixed number of decoding processes, for one caller at a time."""

    def __init__(self, count: int, style: Style, frames: int, load: Load = load_content) -> None:
        self._style, self._frames, self._load_one = style, frames, load
        self._hands = [self._hand() for _ in range(count)]

    def load(self, items: Sequence[Item]) -> list[Content | str]:
        """What each item shows, or the reason why it cannot be shown."""
        if not self._style.looks:
            return [load_content(item, self._style, self._frames) for item in items]
        found: list[Content | str] = [""] * len(items)
        deaths = [0] * len(items)
        waiting = deque(range(len(items)))
        while waiting or any(hand.at is not None for hand in self._hands):
            for hand in self._hands:
                if hand.at is None and waiting:
                    at = waiting.popleft()
                    hand.give(at, items[at])
            busy = [hand for hand in self._hands if hand.at is not None]
            wait([hand.connection for hand in busy], timeout=1.0)
            for hand in busy:
                assert hand.at is not None
                answer = hand.take()
                if answer is not None:
                    found[hand.at] = answer
                elif (how := hand.ended()) is not None:
                    deaths[hand.at] += 1
                    if deaths[hand.at] < _DEATHS:
                        waiting.appendleft(hand.at)
                    else:
                        found[hand.at] = f"{UNSURE}{items[hand.at].item_id}: its decoder {how}"
                    self._hands[self._hands.index(hand)] = self._hand()
                else:
                    continue
                hand.at = None
        return found

    def _hand(self) -> _Hand:
        return _Hand(self._style, self._frames, self._load_one)

    def close(self) -> None:
        """Ends the processes."""
        for hand in self._hands:
            hand.close()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Hand:
    """One process, and which item it has in hand."""

    def __init__(self, style: Style, frames: int, load: Load) -> None:
        self.at: int | None = None
        self.connection, theirs = processes.Pipe()
        self._process = processes.Process(target=_decode, args=(theirs, style, frames, load))
        self._process.start()
        theirs.close()

    def give(self, at: int, item: Item) -> None:
        """Puts an item into its hand."""
        self.at = at
        self._until = time.monotonic() + _PATIENCE_S
        with contextlib.suppress(OSError):  # it has died, as ``ended`` will say
            self.connection.send(item)

    def take(self) -> Content | str | None:
        """Its answer, if there is one."""
        try:
            if self.connection.poll():
                answer: Content | str = self.connection.recv()
                return answer
        except (EOFError, OSError):
            self._process.join()
        return None

    def ended(self) -> str | None:
        """How its process ended, with the item in hand; None while it works."""
        if self._process.is_alive():
            if time.monotonic() < self._until:
                return None
            self.close()
            return f"took longer than {_PATIENCE_S:.0f} s"
        code = self._process.exitcode or 0
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    def close(self) -> None:
        """Ends its process."""
        self.connection.close()
        self._process.kill()
        self._process.join()


def _decode(connection: Connection, style: Style, frames: int, load: Load) -> None:
    """The child: items in, contents or reasons out, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            item: Item = connection.recv()
        except EOFError:
            return
        answer: Content | str
        # Whoever should end a process that hangs may be gone.
        signal.alarm(int(_PATIENCE_S) + 10)
        try:
            answer = load(item, style, frames)
        except MediaError as e:
            answer = str(e)
        except Exception as e:  # one item's trouble is not the job's
            answer = f"{UNSURE}{item.item_id}: cannot be decoded ({type(e).__name__}: {e})"
        signal.alarm(0)
        try:
            connection.send(answer)
        except OSError:
            return
