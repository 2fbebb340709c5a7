"""``serendip recommend`` against toys of both tiers: what it is told is what it asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import in_thread
from toy_tiers import Tiers
from typer.testing import CliRunner

from serendip.cli import app
from serendip.v1 import planner_pb2


def test_the_verb_asks_for_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiers = Tiers()
    with in_thread(tiers.planner_services) as planner:
        command = ["recommend", "a", "--history", "b", "--k", "3", "--planner", planner.address]
        command += ["--clusters", "2", "--merge", "quota", "--constraint", "siblings"]
        ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 0, ran.exception
    assert "Next: cluster 4  (store)" in ran.output
    assert tiers.planner.requests[-1].constraint == planner_pb2.CONSTRAINT_SIBLINGS
    asked = [list(request.node_ids) for request in tiers.retriever.requests]
    assert asked == [[4], [6], [4, 6]], "each by itself, then their union"
