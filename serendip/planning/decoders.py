"""Child processes that decode media: beside the model, and each a cell that may burst.

A decoder that crashes takes its process with it. Every process has one item in hand, so that the
suspect is known; it is tried again, and given up when it has brought several down. Knows no model.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import TracebackType

from serendip.core import Item, MediaError
from serendip.planning.prompt import Content, Source, load_content
from serendip.planning.style import Style

Load = Callable[[Source, Style, int], Content]
Loaded = Content | MediaError


class UnsureError(MediaError):
    """Media that could not be decoded, and perhaps not by their own fault."""


@dataclass(frozen=True)
class Patience:
    """What a pool bears from one item.

    Attributes:
        seconds: that its decoding may take, of a process that has begun.
        cpu_seconds: that its decoding may work for.
        deaths: of processes that have it in hand; one may be somebody else's doing.
    """

    seconds: float = 120.0
    cpu_seconds: float = 120.0
    deaths: int = 3


PATIENCE = Patience()
_BEGINS_S = 120.0
_BEGUN = "begun"

# A server process forks the others: what it has imported they need not import again.
processes = multiprocessing.get_context("forkserver")


class Decoders:
    """A fixed number of decoding processes, for one caller at a time."""

    def __init__(
        self,
        count: int,
        style: Style,
        frames: int,
        load: Load = load_content,
        patience: Patience = PATIENCE,
    ) -> None:
        self._style, self._frames, self._load_one = style, frames, load
        self._patience = patience
        self._count = count
        self._hands: list[_Hand] = []
        self._hire()

    def load(self, items: Sequence[Source]) -> list[Loaded]:
        """What each item shows, or why it cannot be shown: UnsureError if it may be able to."""
        if not self._style.looks:
            return [load_content(item, self._style, self._frames) for item in items]
        self._hire()
        try:
            return self._loaded(items)
        except BaseException:
            # What is in hand now would be taken for the next items.
            self.close()
            raise

    def _loaded(self, items: Sequence[Source]) -> list[Loaded]:
        found: dict[int, Loaded] = {}
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
                    if deaths[hand.at] < self._patience.deaths:
                        waiting.appendleft(hand.at)
                    else:
                        found[hand.at] = _unsure(items[hand.at], f"its decoder {how}")
                    self._hands[self._hands.index(hand)] = self._hand()
                else:
                    continue
                hand.at = None
        return [found[at] for at in range(len(items))]

    def _hire(self) -> None:
        while len(self._hands) < self._count:
            self._hands.append(self._hand())

    def _hand(self) -> _Hand:
        return _Hand(self._style, self._frames, self._load_one, self._patience)

    def close(self) -> None:
        """Ends the processes."""
        while self._hands:
            self._hands.pop().close()

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

    def __init__(self, style: Style, frames: int, load: Load, patience: Patience) -> None:
        self.at: int | None = None
        self._patience = patience
        self._begun = False
        self.connection, theirs = processes.Pipe()
        self._process = processes.Process(
            target=_decode, args=(theirs, style, frames, load, patience)
        )
        try:
            self._process.start()
        except BaseException:
            self.connection.close()
            raise
        finally:
            theirs.close()

    def give(self, at: int, item: Source) -> None:
        """Puts an item into its hand."""
        self.at = at
        bears_s = self._patience.seconds if self._begun else _BEGINS_S
        self._until = time.monotonic() + bears_s
        with contextlib.suppress(OSError):  # it has died, as ``ended`` will say
            self.connection.send(item)

    def take(self) -> Loaded | None:
        """Its answer, if there is one."""
        try:
            if self.connection.poll():
                answer: Loaded | str = self.connection.recv()
                if not isinstance(answer, str):
                    return answer
                self._begun = True
                self._until = time.monotonic() + self._patience.seconds
        except (EOFError, OSError):
            self._process.join()
        return None

    def ended(self) -> str | None:
        """How its process ended, with the item in hand; None while it works."""
        if self._process.is_alive():
            if time.monotonic() < self._until:
                return None
            self.close()
            return f"took longer than {self._patience.seconds:.0f} s"
        code = self._process.exitcode or 0
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"

    def close(self) -> None:
        """Ends its process."""
        self.connection.close()
        self._process.kill()
        self._process.join()


def _unsure(item: Source, what: str) -> UnsureError:
    return UnsureError(what, field=item.item_id if isinstance(item, Item) else item.field)


def _decode(
    connection: Connection, style: Style, frames: int, load: Load, patience: Patience
) -> None:
    """The child: items in, contents or errors out, until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        connection.send(_BEGUN)
    while True:
        try:
            item: Source = connection.recv()
        except EOFError:
            return
        answer: Loaded
        # Whoever should end a process that hangs may be gone.
        signal.alarm(int(patience.seconds) + 10)
        signal.setitimer(signal.ITIMER_PROF, patience.cpu_seconds)  # ends it: SIGPROF
        try:
            answer = load(item, style, frames)
        except MediaError as e:
            answer = e
        except Exception as e:  # one item's trouble is not the job's
            answer = _unsure(item, f"cannot be decoded ({type(e).__name__}: {e})")
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        try:
            connection.send(answer)
        except OSError:
            return
