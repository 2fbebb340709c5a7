"""A command in a process of its own: what it takes of time and memory, with all its children."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Taken:
    """What a command took.

    Attributes:
        cpu_s: user and system seconds of the process and its descendants, Linux's /proc.
        peak_gb: highest resident memory of all of them together, in 10^9 bytes, seen ten times
            a second.
        said: the last line of its standard output; "" if it failed.
        failed: how it failed; "" if it did not.
    """

    wall_s: float
    cpu_s: float
    peak_gb: float
    said: str
    failed: str = ""


def take(command: Sequence[str], environment: Mapping[str, str], limit_s: float) -> Taken:
    """Runs a command to its end, or until ``limit_s`` have passed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env=dict(environment), stdout=out, stderr=err, start_new_session=True
        )
        cpu: dict[int, float] = {}
        peak = 0
        while process.poll() is None:
            resident = 0
            for pid in family(process.pid):
                try:
                    cpu[pid], pages = _usage(pid)
                except (OSError, IndexError, ValueError):
                    continue
                resident += pages * _PAGE
            peak = max(peak, resident)
            if time.perf_counter() - began > limit_s:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return Taken(limit_s, sum(cpu.values()), peak / 1e9, "", f"over {limit_s:.0f} s")
            time.sleep(0.1)
        wall = time.perf_counter() - began
        out.seek(0)
        err.seek(0)
        said, complaints = out.read().splitlines(), err.read().splitlines()
    if process.returncode:
        how = f"ends with {process.returncode}: {(complaints or [''])[-1][:200]}"
        return Taken(wall, sum(cpu.values()), peak / 1e9, "", how)
    return Taken(wall, sum(cpu.values()), peak / 1e9, (said or [""])[-1])


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a live process and its live descendants so far."""
    return sum(_usage(member)[0] for member in family(pid))


def family(pid: int) -> list[int]:
    """A live process and its live descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            found += family(int(child))
    return found


def _usage(pid: int) -> tuple[float, int]:
    """(CPU seconds, resident pages) of a live process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21])
