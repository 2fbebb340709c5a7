"""The server process under reloads, overload, cancels, hostile clients, stops and kills.

Load comes from a process of its own, every answer is compared with the library's. A few seconds
each by default; ``--run-full`` takes the durations and the larger artefact of docs/retriever.md
and prints the figures (add ``-s``). Counts and memory are held to bounds; latencies are only told.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import mute_client
import pytest
from faults import begin, check_overload, children, ended, is_up, metric, resident, run, show, until
from made_releases import MadeReleases, make_releases

from serendip.local import ServerProcess, start_server
from serendip.v1 import retriever_pb2, retriever_pb2_grpc

MIB = 1 << 20


@dataclass(frozen=True)
class Stage:
    """What a test plays on.

    Attributes:
        full: whether the long form runs.
        folder: for files of the test.
    """

    made: MadeReleases
    folder: Path
    full: bool

    def seconds(self, short: float, full: float) -> float:
        return full if self.full else short

    def count(self, short: int, full: int) -> int:
        return full if self.full else short

    @contextlib.contextmanager
    def server(self, *options: str) -> Iterator[ServerProcess]:
        arguments = ["--artifacts", str(self.made.artifacts.root), "--port", "0"]
        log = self.folder / "server.log"
        server = start_server(
            "retriever_server", *arguments, "--metrics-port", "0", *options, log=log
        )
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.stop()

    def requests(self, **options: Any) -> str:
        path = self.folder / "requests.json"
        self.made.write_requests(path, 64, **options)
        return str(path)

    def log(self) -> str:
        return (self.folder / "server.log").read_text()


@pytest.fixture(scope="session")
def world(request, tmp_path_factory) -> tuple[MadeReleases, bool]:
    if not request.config.getoption("--run-full"):
        return request.getfixturevalue("made"), False
    folder = tmp_path_factory.mktemp("large")
    shape = {"items": 100_000, "branching": (8, 8, 8, 8), "dimensions": 64, "blocks": 2}
    return make_releases(folder, **shape), True


@pytest.fixture
def stage(world, tmp_path) -> Stage:
    made, full = world
    made.artifacts.make_current("release", made.versions[0])
    made.artifacts.make_current("release", made.versions[1])
    return Stage(made, tmp_path, full)


def tell(address: str) -> retriever_pb2.RetrieverGetInfoResponse:
    """What a server says of itself, on a connection of its own."""
    with grpc.insecure_channel(address) as channel:
        stub = retriever_pb2_grpc.RetrieverStub(channel)
        return stub.GetInfo(
            retriever_pb2.RetrieverGetInfoRequest(), timeout=10, wait_for_ready=True
        )


def capacity(stage: Stage, address: str, requests: str) -> float:
    """Calls a second that are answered with 24 in flight, in the worst of a few spells."""
    return min(
        run(address, requests, stage.seconds(0.5, 4), in_flight=24, deadline_s=20)["answered_per_s"]
        for _ in range(stage.count(1, 4))
    )


# --- (a) reload under load ---------------------------------------------------------------


def test_reloads_under_load_fail_no_call_and_keep_no_memory(stage: Stage) -> None:
    requests = stage.requests(which=(0, 1))
    every_s = stage.seconds(1, 5)
    reloads, rounds = stage.count(3, 5), stage.count(1, 4)
    # Another test worker takes half of the machine whenever it likes.
    share = 0.35 if "PYTEST_XDIST_WORKER" in os.environ else 0.7
    rates, memory, without, under = [], [], [], []
    with stage.server("--poll-s", "0.2") as server:
        # In turns, for the machine is not the same from one minute to the next, nor is what the
        # server can do on it.
        for turn in range(rounds):
            rate = share * capacity(stage, server.address, requests) if stage.full else 150
            rates.append(round(rate))
            load = {"rate": rate, "deadline_s": 20}
            if stage.full:
                before = run(server.address, requests, 12, **load)
            running = begin(server.address, requests, every_s * (reloads + 1), **load)
            for number in range(reloads):
                time.sleep(every_s)
                stage.made.artifacts.make_current(
                    "release", stage.made.versions[(reloads * turn + number) % 2]
                )
                done = reloads * turn + number + 1
                until(
                    lambda done=done: metric(server.metrics, "serendip_reloads_total") == done, 60
                )
                memory.append(resident(server.process.pid)["own"])
            under.append(ended(running))
            if stage.full:
                without.append((before, run(server.address, requests, 12, **load)))
        assert metric(server.metrics, "serendip_reload_failures_total") == 0
    show(
        "reload",
        rates=rates,
        reloads=reloads * rounds,
        without_ms=[[seen["answered_ms"] for seen in pair] for pair in without],
        under_ms=[seen["answered_ms"] for seen in under],
        memory_mib=[round(m) for m in memory],
        without=[[seen["codes"] for seen in pair] for pair in without],
        under=[seen["codes"] for seen in under],
    )
    for seen in under:
        assert seen["wrong"] == 0
        assert set(seen["codes"]) <= {"OK", "RESOURCE_EXHAUSTED"}, seen["says"]
    # A rate that the machine could not keep up just before or after says nothing of reloads.
    steady = [
        all(set(seen["codes"]) == {"OK"} for seen in pair) for pair in without or [()] * rounds
    ]
    if not any(steady):
        pytest.skip("the machine carried no rate that it had just carried: nothing is shown")
    for seen, counts in zip(under, steady, strict=True):
        assert not counts or set(seen["codes"]) == {"OK"}, seen["says"]
    if stage.full:
        assert max(memory[-reloads:]) < max(memory[reloads:-reloads]) + 10


def test_a_server_lets_go_of_the_release_that_it_began_with(made, tmp_path) -> None:
    stage = Stage(made, tmp_path, full=False)
    made.artifacts.make_current("release", made.versions[0])
    (made.artifacts.root / "release" / "previous").unlink()
    with stage.server("--poll-s", "0.1") as server:
        maps = Path(f"/proc/{server.process.pid}/maps")
        first = made.artifacts.open("release", made.versions[0]).inputs["retriever"]
        assert f"{first}/items.npy" in maps.read_text()
        for done, version in enumerate(made.versions[1:], start=1):
            made.artifacts.make_current("release", version)
            until(lambda done=done: metric(server.metrics, "serendip_reloads_total") == done)
        info = tell(server.address)
        trees = [ranker.versions.tree_version for ranker in made.rankers]
        assert list(info.tree_versions) == [trees[2], trees[1]]
        until(lambda: f"{first}/items.npy" not in maps.read_text())


# --- (b) overload ------------------------------------------------------------------------

# What is short: the batch thread, which looks through all items for each row; or the event loop,
# which encodes large answers. (A client in Python cannot offer three times as many small ones.)
SHORT: dict[str, dict[str, Any]] = {
    "batch thread": {"k": 20, "level": 0},
    "event loop": {"k": 500, "level": 1},
}


@pytest.mark.parametrize("short", SHORT)
def test_overload_is_shed_and_the_rest_is_answered(stage: Stage, short: str) -> None:
    requests = stage.requests(which=(1,), gap=0.0, **SHORT[short])
    deadline_s = 0.25
    with stage.server() as server:
        load = {"deadline_s": 5, "checked": False, "connections": 16}
        most = 200.0
        if stage.full:
            run(server.address, requests, 8, in_flight=24, **load)
            time.sleep(5)  # the scan is compiled at the 1,000th ask
            most = run(server.address, requests, 8, in_flight=24, **load)["answered_per_s"]
        memory = resident(server.process.pid)["own"]
        load["deadline_s"] = deadline_s
        over = run(server.address, requests, stage.seconds(1.5, 60), rate=3 * most, **load)
        grown = resident(server.process.pid)["own"] - memory
        after = {"codes": {}, "by_second": []}
        if stage.full:
            after = run(server.address, requests, 5, rate=0.5 * most, **load)
    check_overload(f"overload, short of the {short}", most, over, grown, after)
    assert grown < 100
    if stage.full:
        assert over["codes"]["OK"] < sum(over["codes"].values()), "nothing was shed"
        assert after["by_second"][0]["answered"] > 0.3 * most, "capacity is not back"


# --- (c) cancels -------------------------------------------------------------------------


def test_cancelled_calls_disturb_no_other(stage: Stage) -> None:
    requests = stage.requests(which=(0, 1))
    with stage.server() as server:
        rate = 0.7 * capacity(stage, server.address, requests) if stage.full else 200
        load = {"rate": rate / 2, "deadline_s": 20}
        some = begin(server.address, requests, stage.seconds(2, 120), cancelled=0.1, seed=1, **load)
        half = run(server.address, requests, stage.seconds(2, 60), cancelled=0.5, seed=2, **load)
        tenth = ended(some)
        show("cancels", rate=round(rate), tenth=tenth["codes"], half=half["codes"])
        for seen in (tenth, half):
            assert set(seen["codes"]) == {"OK", "CANCELLED"}, seen["says"]
            assert seen["wrong"] == 0
            assert seen["says"] == {}, "a call was cancelled that nobody had cancelled"
        assert metric(server.metrics, "serendip_batch_waiting_rows") == 0
    assert "Traceback" not in stage.log()


# --- (d) a client that never reads, (e) large requests -----------------------------------


def test_a_client_that_never_reads_holds_up_nobody_and_is_let_go(stage: Stage) -> None:
    requests = stage.requests(which=(1,))
    tree = stage.made.rankers[1].versions.tree_version
    large = retriever_pb2.RetrieveRequest(node_ids=[0], k=1000, tree_version=tree)
    calls = stage.count(300, 20_000)
    # Until the connection is full its calls are work like any other: so many, and not more than the
    # others' deadline leaves room for.
    with stage.server("--keepalive-s", "1", "--max-streams", "50") as server:
        run(server.address, requests, stage.seconds(0.5, 5), rate=300, deadline_s=2)
        time.sleep(stage.seconds(0, 5))  # the scan is compiled at the 1,000th ask
        memory = resident(server.process.pid)["own"]
        connection = mute_client.opened(server.address)
        ends = connection.getsockname()[1], connection.getpeername()[1]
        sent = []

        def send() -> None:
            with contextlib.suppress(OSError):
                for number in range(calls):
                    mute_client.call(connection, number, large.SerializeToString())
                    sent.append(number)

        mute = threading.Thread(target=send, daemon=True)
        mute.start()
        beside = run(server.address, requests, stage.seconds(2, 20), rate=100, deadline_s=2)
        grown = resident(server.process.pid)["own"] - memory
        mute.join(5)
        assert set(beside["codes"]) == {"OK"}, beside["says"]
        assert beside["wrong"] == 0
        answered = metric(
            server.metrics, "grpc_server_handled_total", grpc_method="Retrieve", grpc_code="OK"
        )
        show("mute", sent=len(sent), answered=answered, grown_mib=round(grown, 1))
        assert grown < 64
        until(lambda: not holds(*ends))


def holds(client: int, server: int) -> bool:
    """Whether the server, on this machine, still has the connection between two ports open.

    Asked of the kernel: the end of a connection stands behind what its client does not read.
    """
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for entry in Path(table).read_text().splitlines()[1:]:
            local, remote, inode = (entry.split()[at] for at in (1, 2, 9))
            if (_port(local), _port(remote)) == (server, client):
                return inode != "0"  # no process has it any more
    return False


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def test_a_request_of_64_mib_is_refused_without_harm(stage: Stage) -> None:
    requests = stage.requests(which=(1,))
    huge = retriever_pb2.RetrieveRequest(deny_item_ids=["x" * MIB] * 64, k=1).SerializeToString()
    with stage.server() as server:
        # Its first requests make a server larger, whoever sends them.
        run(server.address, requests, stage.seconds(0.5, 5), rate=300, deadline_s=2)
        time.sleep(stage.seconds(0, 5))  # the scan is compiled at the 1,000th ask
        memory = resident(server.process.pid)["own"]
        load = begin(server.address, requests, stage.seconds(2, 10), rate=100, deadline_s=2)
        with grpc.insecure_channel(
            server.address, [("grpc.max_send_message_length", 100 * MIB)]
        ) as channel:
            call = channel.unary_unary("/serendip.v1.Retriever/Retrieve")
            for _ in range(stage.count(3, 20)):
                with pytest.raises(grpc.RpcError) as caught:
                    call(huge, timeout=20)
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert f"{len(huge)} bytes, at most {4 * MIB}" in caught.value.details()
        beside = ended(load)
        time.sleep(1)  # what was on its way when a request was refused is let go of
        grown = resident(server.process.pid)["own"] - memory
        show("large", codes=beside["codes"], ms=beside["answered_ms"], grown_mib=round(grown, 1))
        assert set(beside["codes"]) == {"OK"}, beside["says"]
        assert grown < 64


# --- (f) a stop, (g) a kill --------------------------------------------------------------


def test_a_stop_under_load_fails_no_call_that_was_accepted(stage: Stage) -> None:
    requests = stage.requests(which=(0, 1))
    with stage.server("--lame-s", "1") as server:
        rate = 0.7 * capacity(stage, server.address, requests) if stage.full else 150
        load = {"rate": rate, "deadline_s": 5, "watching": True}
        under = begin(server.address, requests, 60, **load)
        time.sleep(stage.seconds(2, 8))
        began = time.monotonic()
        assert server.stop() == 0
        took_s = time.monotonic() - began
        seen = ended(under)
    show("stop", rate=round(rate), took_s=round(took_s, 2), codes=seen["codes"])
    assert set(seen["codes"]) == {"OK"}, seen["says"]
    assert seen["wrong"] == 0
    assert 1 < took_s < 4
    assert stage.log() == ""


def test_a_killed_worker_is_replaced_and_the_others_go_on(stage: Stage) -> None:
    requests = stage.requests(which=(0, 1))
    with stage.server("--workers", "2", "--connection-age-s", "2") as server:
        pages = server.metrics.split(",")
        assert len(pages) == 2
        workers = children(server.process.pid)
        assert len(workers) == 2
        # Less than half of what two can do: one is left, and beside it another starts.
        rate = 0.3 * capacity(stage, server.address, requests) if stage.full else 150
        load = {"rate": rate, "deadline_s": 20, "connections": 16}
        under = begin(server.address, requests, stage.seconds(3, 20), **load)
        time.sleep(stage.seconds(1.2, 5))
        os.kill(workers[0], signal.SIGKILL)
        seen = ended(under)
        until(lambda: len(children(server.process.pid)) == 2)
        assert workers[1] in children(server.process.pid), "the other one was ended too"
        until(lambda: all(map(is_up, pages)))
        handled = [metric(page, "grpc_server_handled_total", grpc_code="OK") for page in pages]
        show("kill", codes=seen["codes"], says=seen["says"], handled=handled)
        assert set(seen["codes"]) <= {"OK", "UNAVAILABLE"}, seen["says"]
        assert seen["codes"].get("UNAVAILABLE", 0) < 0.1 * seen["codes"]["OK"]
        if stage.full:
            assert handled[0] > 0, "connections do not come back to it"
        assert seen["wrong"] == 0
        assert len(tell(server.address).tree_versions) == 2
        assert server.stop() == 0
    assert stage.log().count("ended with -9") == 1
