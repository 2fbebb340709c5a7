"""The planner server process under reloads, overload, cancels, kills, and without its retriever.

Load comes from a process of its own, every answer is compared. A few seconds each by default;
``--run-full`` takes longer and prints the figures (add ``-s``). Counts and memory are held to
bounds; latencies are only told.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parts
import pytest
from faults import begin, check_overload, children, ended, metric, resident, run, show, until
from serendip_client import SerendipClient
from server_load import PLAN

from serendip.artifacts import Artifact, Artifacts
from serendip.core import DeadlineSpent, NotReady, PlanSource
from serendip.local import ServerProcess, start_server
from serendip.planning.lmdb_store import FILE, LmdbStore
from serendip.v1 import planner_pb2

STORED = parts.ITEMS[:-1]


@dataclass(frozen=True)
class Stage:
    """Two releases of look-ups, each of a tree of its own, and what is known of their answers."""

    artifacts: Artifacts
    releases: tuple[Artifact, ...]
    folder: Path
    full: bool

    def seconds(self, short: float, full: float) -> float:
        return full if self.full else short

    @contextlib.contextmanager
    def server(self, *options: str) -> Iterator[ServerProcess]:
        arguments = ["--artifacts", str(self.artifacts.root), "--port", "0", "--metrics-port", "0"]
        log = self.folder / "server.log"
        server = start_server("planner_server", *arguments, "--no-live", *options, log=log)
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.stop()

    def requests(self, items: int = 3, k: int = 8) -> str:
        """Requests for so many items each, with the plans that each release has for them."""
        plans: dict[str, dict[str, list[int]]] = {}
        for release in self.releases:
            store = LmdbStore(self.artifacts.open("plans", release.inputs["plans"]).file(FILE))
            messages = {item: planner_pb2.Plan.FromString(data) for item, data in store.rows()}
            plans[release.tree_version] = {
                item: [c.node_id for c in plan.clusters[:k]] for item, plan in messages.items()
            }
        rows = []
        for at in range(16):
            picked = [STORED[(at + n) % len(STORED)] for n in range(items)]
            request = planner_pb2.PlanRequest(context_item_ids=picked, k=k)
            nodes = {tree: [of[item] for item in picked] for tree, of in plans.items()}
            rows.append({"request": request.SerializeToString().hex(), "nodes": nodes})
        path = self.folder / "requests.json"
        path.write_text(json.dumps(rows))
        return str(path)

    def log(self) -> str:
        return (self.folder / "server.log").read_text()


@pytest.fixture
def stage(request, tmp_path) -> Stage:
    artifacts = Artifacts(tmp_path / "artifacts")
    releases = tuple(parts.publish_all(artifacts, seed) for seed in (0, 1))
    return Stage(artifacts, releases, tmp_path, request.config.getoption("--run-full"))


def test_reloads_under_load_fail_no_call_and_mix_no_release(stage: Stage) -> None:
    requests = stage.requests()
    every_s, reloads = stage.seconds(0.7, 5), 24 if stage.full else 4
    with stage.server("--poll-s", "0.1") as server:
        load = {"rate": stage.seconds(150, 400), "deadline_s": 20, "method": PLAN}
        before = run(server.address, requests, stage.seconds(0.5, 15), **load)
        memory = resident(server.process.pid)["own"]
        running = begin(server.address, requests, every_s * (reloads + 1), **load)
        for done in range(1, reloads + 1):
            time.sleep(every_s)
            stage.artifacts.make_current("release", stage.releases[(done + 1) % 2].version)
            until(lambda done=done: metric(server.metrics, "serendip_reloads_total") == done, 60)
        seen = ended(running)
        grown = resident(server.process.pid)["own"] - memory
    show(
        "planner reload",
        reloads=reloads,
        without_ms=before["answered_ms"],
        with_ms=seen["answered_ms"],
        codes=seen["codes"],
        grown_mib=round(grown, 1),
    )
    assert set(seen["codes"]) == {"OK"}, seen["says"]
    assert seen["wrong"] == 0
    assert grown < 64


def test_overload_is_shed_and_the_rest_is_answered(stage: Stage) -> None:
    # Many rows, each cut to one cluster: a client in Python cannot offer the cheap ones threefold.
    requests = stage.requests(items=256, k=1)
    with stage.server("--max-in-flight", "32") as server:
        load = {"method": PLAN, "checked": False, "connections": 16}
        most = run(
            server.address, requests, stage.seconds(0.7, 8), in_flight=24, deadline_s=5, **load
        )["answered_per_s"]
        memory = resident(server.process.pid)["own"]
        load["deadline_s"] = 0.25
        over = run(server.address, requests, stage.seconds(1.5, 60), rate=3 * most, **load)
        grown = resident(server.process.pid)["own"] - memory
        after = run(server.address, requests, stage.seconds(2, 5), rate=0.3 * most, **load)
    check_overload("planner overload", most, over, grown, after)
    assert grown < 64
    assert after["codes"]["OK"] > 0, "it did not come back"


def test_cancelled_calls_disturb_no_other(stage: Stage) -> None:
    requests = stage.requests()
    with stage.server() as server:
        load = {"rate": stage.seconds(150, 300), "deadline_s": 20, "method": PLAN}
        seconds = stage.seconds(1.5, 120)
        some = begin(server.address, requests, seconds, cancelled=0.1, seed=1, **load)
        half = run(server.address, requests, seconds / 2, cancelled=0.5, seed=2, **load)
        tenth = ended(some)
    show("planner cancels", tenth=tenth["codes"], half=half["codes"])
    for seen in (tenth, half):
        assert set(seen["codes"]) <= {"OK", "CANCELLED"}, seen["says"]
        assert seen["codes"]["OK"] > 0
        assert seen["wrong"] == 0
        assert seen["says"] == {}, "a call was cancelled that nobody had cancelled"
    assert "Traceback" not in stage.log()


def test_a_killed_worker_is_replaced_and_the_others_go_on(stage: Stage) -> None:
    requests = stage.requests()
    with stage.server("--workers", "2", "--connection-age-s", "2") as server:
        workers = children(server.process.pid)
        assert len(workers) == 2
        load = {"rate": 150, "deadline_s": 20, "connections": 16, "method": PLAN}
        under = begin(server.address, requests, stage.seconds(2, 20), **load)
        time.sleep(stage.seconds(0.8, 5))
        os.kill(workers[0], signal.SIGKILL)
        seen = ended(under)
        until(lambda: len(children(server.process.pid)) == 2)
        assert workers[1] in children(server.process.pid), "the other one was ended too"
        show("planner kill", codes=seen["codes"], says=seen["says"])
        assert set(seen["codes"]) <= {"OK", "UNAVAILABLE"}, seen["says"]
        # Those in flight on its connections, and those that came before they were made anew.
        assert seen["codes"].get("UNAVAILABLE", 0) < 0.25 * seen["codes"]["OK"]
        assert seen["wrong"] == 0
        assert server.stop() == 0
    assert stage.log().count("ended with -9") == 1


# --- the retriever goes and comes ------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_retriever_that_goes_is_named_at_once_and_found_again(
    small_world: Any, tmp_path: Path, how: signal.Signals
) -> None:
    """Killed: UNAVAILABLE at once. Frozen: no later than the caller's deadline. Plans go on."""
    root = str(small_world.config.artifacts_path)
    corpus = small_world.artifacts.current("plans")
    item = next(LmdbStore(corpus.file(FILE)).rows())[0]

    def retriever(port: str = "0") -> ServerProcess:
        own = ["--artifacts", root, "--port", port]
        return start_server("retriever_server", *own, log=tmp_path / "retriever.log")

    first = retriever()
    port = first.address.rpartition(":")[2]
    options = ["--artifacts", root, "--no-live", "--port", "0", "--retriever", first.address]
    planner = start_server("planner_server", *options, log=tmp_path / "planner.log")
    second = None
    try:
        with SerendipClient(planner.address, timeout_s=20) as client:
            before = client.recommend([item], item, k=5)
            assert before.source is PlanSource.STORE
            first.process.send_signal(how)
            if how is signal.SIGKILL:
                first.process.wait(10)
            with SerendipClient(planner.address, timeout_s=1.5) as hasty:
                began = time.monotonic()
                with pytest.raises((NotReady, DeadlineSpent)) as caught:
                    hasty.recommend([item], item, k=5)
                took_s = time.monotonic() - began
            if how is signal.SIGKILL:
                assert isinstance(caught.value, NotReady)
            assert took_s < 5, "it hung past its deadline"
            assert client.plan([item])[0].source is PlanSource.STORE
            if how is signal.SIGSTOP:
                first.process.send_signal(signal.SIGCONT)
            else:
                second = retriever(port)
            up = time.monotonic()

            def answers() -> bool:
                with contextlib.suppress(NotReady, DeadlineSpent):
                    return client.recommend([item], item, k=5).candidates == before.candidates
                return False

            until(answers, 15)
            back_s = time.monotonic() - up
        show(f"retriever {how.name}", told_s=round(took_s, 3), back_s=round(back_s, 3))
    finally:
        assert planner.stop() == 0
        for one in (first, second):
            if one is not None and one.process.poll() is None:
                one.stop()
