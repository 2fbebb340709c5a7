"""What the fault tests of both servers do: load a server, and look at it from outside."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import server_load


def begin(address: str, requests: str, seconds: float, **load: Any) -> subprocess.Popen[str]:
    settings = {"address": address, "requests": requests, "seconds": seconds, **load}
    return subprocess.Popen(
        [sys.executable, server_load.__file__, json.dumps(settings)],
        stdout=subprocess.PIPE,
        text=True,
    )


def ended(load: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = load.communicate(timeout=400)
    assert load.returncode == 0
    return json.loads(out)


def run(address: str, requests: str, seconds: float, **load: Any) -> dict[str, Any]:
    return ended(begin(address, requests, seconds, **load))


def metric(url: str, name: str, **labels: str) -> float:
    total = 0.0
    for line in urllib.request.urlopen(url, timeout=10).read().decode().splitlines():
        found = re.match(r"(\w+)(?:\{(.*)\})? (\S+)$", line)
        if found and found[1] == name:
            has = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
            if all(has.get(k) == v for k, v in labels.items()):
                total += float(found[3])
    return total


def is_up(url: str) -> bool:
    """Whether a page of metrics answers."""
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except OSError:
        return False


def resident(pid: int) -> dict[str, float]:
    """MiB of a process: all that is mapped and in memory, and what is its own."""
    status = Path(f"/proc/{pid}/status").read_text()
    read = {name: int(kb) / 1024 for name, kb in re.findall(r"(\w+):\s+(\d+) kB", status)}
    return {"all": read["VmRSS"], "own": read["RssAnon"]}


def show(name: str, **figures: Any) -> None:
    print(f"\n{name}: {json.dumps(figures)}")


def until(condition: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def check_overload(
    name: str, most: float, over: dict[str, Any], grown: float, after: dict[str, Any]
) -> None:
    """Tells what came of a load beyond ``most`` calls a second; no code may be of another kind.

    Args:
        over, after: what ``run`` returned for it, and for a bearable one after it.
        grown: MiB that the server has more.
    """
    show(
        name,
        capacity=round(most),
        offered=round(over["offered_per_s"]),
        answered=round(over["answered_per_s"]),
        codes=over["codes"],
        answered_ms=over["answered_ms"],
        refused_ms=over["refused_ms"],
        client_lag_ms=over["lag_ms"],
        grown_mib=round(grown, 1),
        after=after["codes"],
        after_by_second=after["by_second"],
    )
    assert over["without_retry_info"] == 0
    # CANCELLED is what gRPC's core says of calls that it would not keep.
    codes = {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED", "UNAVAILABLE"}
    assert set(over["codes"]) <= codes, over["says"]
    assert over["codes"]["OK"] > 0
