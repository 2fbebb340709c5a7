"""What a long job says of itself where there is no terminal."""

from __future__ import annotations

import pytest

from serendip import progress as module
from serendip.progress import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes when it is told; lines come every 15 s of it."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_lines_tell_rate_and_what_is_left(clock, capsys):
    with progress("work", 100) as tick:
        clock.now += 5
        tick(10)
        assert capsys.readouterr().err == ""
        clock.now += 15
        tick(30, note="loss 2")
    assert capsys.readouterr().err == "  work: 40/100, 2.0/s, 30 s left loss 2\n"


def test_what_an_earlier_run_has_done_is_shown_and_does_not_count_in_the_rate(clock, capsys):
    with progress("work", 100, done=50) as tick:
        clock.now += 20
        tick(10)
    assert capsys.readouterr().err == "  work: 60/100, 0.5/s, 80 s left \n"


def test_a_note_alone_is_no_progress(clock, capsys):
    with progress("work", 100, done=50) as tick:
        clock.now += 20
        tick(0, note="nothing yet")
    assert capsys.readouterr().err == ""
