"""kill -9 of processes that publish and prune: every published version is whole, current opens."""

import os
import random
import signal
import subprocess
import sys
import time

import busy_publisher
import pytest

from serendip.artifacts import Artifacts
from serendip.inventory import Retention, list_entries, prune, verify_entries, verify_pointers
from serendip.progress import console


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(console, "quiet", True)


def start(root, seed):
    return subprocess.Popen(
        [sys.executable, busy_publisher.__file__, str(root), str(seed)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said  # it had not ended by itself


def check(artifacts):
    """All that a reader may count on."""
    entries = list_entries(artifacts)
    found = verify_pointers(artifacts) + verify_entries(artifacts, entries)
    assert [f for f in found if f.corrupt] == []
    for kind in ("tree", "plans", "release"):
        artifacts.current(kind)
    for kind, version in artifacts.current("release").inputs.items():
        artifacts.open(kind, version)


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.full)])
def test_after_kill_9_at_any_moment_every_version_verifies_and_current_opens(tmp_path, rounds):
    artifacts = Artifacts(tmp_path)
    rng = random.Random(rounds)
    drafts = 0
    for seed in range(rounds):
        process = start(tmp_path, seed)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0, 0.1))
        kill(process)
        check(artifacts)
        drafts += sum(e.state == "draft" for e in list_entries(artifacts))
    assert drafts, "no kill met a draft: the moments are not random enough"
    prune(artifacts, busy_publisher.KEPT)
    kept = {p.name for kind in ("tree", "plans", "release") for p in (tmp_path / kind).iterdir()}
    assert kept == {e.version for e in list_entries(artifacts)} | {"current", "previous"}


def test_two_processes_that_publish_and_prune_at_once_never_break_each_other(tmp_path):
    artifacts = Artifacts(tmp_path)
    processes = [start(tmp_path, seed) for seed in range(2)]
    for process in processes:
        process.stdout.readline()
    until = time.monotonic() + 2
    while time.monotonic() < until:
        for kind in ("tree", "plans", "release"):
            artifacts.current(kind)
    for process in processes:
        kill(process)
    check(artifacts)
    prune(artifacts, Retention(busy_publisher.KEPT.keep, draft_age_s=0))
    check(artifacts)
