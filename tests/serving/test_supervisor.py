"""Processes behind one port: ready together, kept alive, and ended together."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lone_worker_parent
import pytest

from serendip.core import InvalidRequest
from serendip.serving.supervisor import hold_port


@contextlib.contextmanager
def parent(folder: Path, count: int = 3, **options: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, lone_worker_parent.__file__, str(folder), str(count)]
    process = subprocess.Popen(
        [*command, *(f"{name}={value}" for name, value in options.items())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        for pid in pids(folder).values():  # left behind only where a test fails
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()


def pids(folder: Path) -> dict[int, int]:
    return {int(p.stem): int(p.read_text()) for p in folder.glob("*.pid")}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_one_line_when_all_are_ready_and_zero_when_all_have_drained(tmp_path: Path) -> None:
    with parent(tmp_path, metrics_port=9100) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        pages = ",".join(f"http://127.0.0.1:{9100 + i}/metrics" for i in range(3))
        assert re.fullmatch(rf"lone ready on 127\.0\.0\.1:\d+, metrics {pages}", line)
        assert len(set(pids(tmp_path).values())) == 3
        process.send_signal(signal.SIGHUP)
        until(lambda: len(list(tmp_path.glob("*.hups"))) == 3)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (0, "", "")
        assert len(list(tmp_path.glob("*.drained"))) == 3, "it did not wait for them"


def test_a_worker_that_ends_is_started_again_each_time_later(tmp_path: Path) -> None:
    with parent(tmp_path, count=2, metrics_port=0) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        other = pids(tmp_path)[0]
        waits = []
        for delay in ("0.1", "0.2", "0.4"):
            killed = pids(tmp_path)[1]
            os.kill(killed, signal.SIGKILL)
            began = time.monotonic()
            said = process.stderr.readline()
            assert said.strip() == f"lone: worker 1 ({killed}) ended with -9: again in {delay} s"
            until(lambda killed=killed: pids(tmp_path)[1] != killed)
            waits.append(time.monotonic() - began)
        assert waits[0] > 0.1
        assert waits[2] > 0.4
        assert pids(tmp_path)[0] == other, "the others go on"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_worker_that_cannot_start_ends_all_with_its_code(tmp_path: Path) -> None:
    (tmp_path / "0.broken").touch()
    with parent(tmp_path) as process:
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err) == (3, "", "")
        assert pids(tmp_path) == {}, "the others were not even begun"
    (tmp_path / "0.broken").unlink()
    (tmp_path / "2.broken").touch()
    with parent(tmp_path) as process:
        out, _ = process.communicate(timeout=10)
        assert (process.returncode, out) == (3, "")
        assert (tmp_path / "0.drained").exists()


def test_workers_end_gracefully_when_their_parent_is_killed(tmp_path: Path) -> None:
    with parent(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        until(lambda: not any(alive(pid) for pid in pids(tmp_path).values()))
        assert len(list(tmp_path.glob("*.drained"))) == 3


def test_a_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    (tmp_path / "1.stuck").touch()
    with parent(tmp_path, stop_s=1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 1
        assert (tmp_path / "0.drained").exists()
        assert not any(alive(pid) for pid in pids(tmp_path).values())


def test_a_port_is_held_for_those_who_share_it_and_from_all_others() -> None:
    with hold_port("127.0.0.1", 0) as port:
        with (
            pytest.raises(InvalidRequest, match="port: cannot listen"),
            hold_port("127.0.0.1", port),
        ):
            pass
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", port))
            other.listen()
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                pass
        with socket.socket() as alone, pytest.raises(OSError, match="in use"):
            alone.bind(("127.0.0.1", port))
    for bad in (70_000, -1):
        with pytest.raises(InvalidRequest), hold_port("127.0.0.1", bad):
            pass
    with pytest.raises(InvalidRequest), hold_port("no.such.host.invalid", 0):
        pass
