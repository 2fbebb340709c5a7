"""What a server serves follows the current release, and is never worse for it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import subprocess
import sys
import time
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from made_releases import MadeReleases
from prometheus_client import CollectorRegistry

from retriever_server.loading import Loader
from retriever_server.release import open_current, open_release, warm
from retriever_server.service import Serving
from retriever_server.withheld import WithheldFile
from serendip.artifacts import Artifacts
from serendip.core import Retrieval, RetrievalQuery, WrongTree
from serendip.serving.follow import Follower
from serendip.serving.turns import Turns


class Followed:
    """A follower whose swaps are remembered."""

    def __init__(self, made: MadeReleases, **options: Any) -> None:
        self.registry = CollectorRegistry()
        self.served = open_current(made.artifacts)
        self.swaps = 0
        self.loader = Loader(made.artifacts, max_batch=3, **options)
        self.follower = Follower(
            partial(made.artifacts.current_version, "release"),
            self.served,
            self.loader.load,
            self.swap,
            self.registry,
            look=self.loader.look,
            poll_s=0.05,
        )

    def swap(self, serving: Serving) -> None:
        self.served = serving
        self.swaps += 1

    def read(self, name: str) -> float:
        value = self.registry.get_sample_value(name)
        assert value is not None
        return value

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            await asyncio.sleep(0.01)


def follow(followed: Followed, body: Callable[[Followed], Awaitable[None]]) -> None:
    async def main() -> None:
        task = asyncio.create_task(followed.follower.run())
        try:
            await body(followed)
        finally:
            task.cancel()
            followed.loader.close()
            followed.follower.close()

    asyncio.run(main())


@pytest.fixture
def own(made: MadeReleases, tmp_path: Path) -> MadeReleases:
    """A copy that a test may damage; the first release is current, and no other was."""
    shutil.copytree(made.artifacts.root, tmp_path / "own")
    artifacts = Artifacts(tmp_path / "own")
    artifacts.make_current("release", made.versions[0])
    (artifacts.root / "release" / "previous").unlink()
    return MadeReleases(artifacts, made.versions, made.rankers)


def tree(made: MadeReleases, at: int) -> str:
    return made.rankers[at].versions.tree_version


def test_a_new_release_is_swapped_in_and_the_tree_before_stays_open(own: MadeReleases) -> None:
    _, second, third = own.versions

    async def body(followed: Followed) -> None:
        assert list(followed.served.rankers) == [tree(own, 0)]
        own.artifacts.make_current("release", second)
        await followed.until(lambda: followed.served.version == second)
        assert list(followed.served.rankers) == [tree(own, 1), tree(own, 0)]
        own.artifacts.make_current("release", third)
        await followed.until(lambda: followed.served.version == third)
        assert list(followed.served.rankers) == [tree(own, 2), tree(own, 1)]
        with pytest.raises(WrongTree, match=f"open are {tree(own, 2)}, {tree(own, 1)}"):
            followed.served.ranker(tree(own, 0))
        own.artifacts.make_current("release", second)  # back again
        await followed.until(lambda: followed.served.version == second)
        assert list(followed.served.rankers) == [tree(own, 1), tree(own, 2)]
        assert followed.swaps == followed.read("serendip_reloads_total") == 3
        assert followed.read("serendip_reload_failures_total") == 0
        since = time.time() - followed.read("serendip_reload_last_success_time_seconds")
        assert 0 <= since < 10

    follow(Followed(own), body)


def test_a_release_that_cannot_be_opened_leaves_the_old_one_and_is_told_once(
    own: MadeReleases, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, _ = own.versions
    release = own.artifacts.open("release", second)
    matrix = own.artifacts.root / "retriever" / release.inputs["retriever"] / "items.npy"
    good = matrix.read_bytes()
    matrix.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))

    async def body(followed: Followed) -> None:
        own.artifacts.make_current("release", second)
        await followed.until(lambda: followed.read("serendip_reload_failures_total") >= 2)
        assert followed.served.version == first
        assert followed.swaps == 0
        (record,) = [r for r in caplog.records if r.name == "serendip.serving.follow"]
        text = record.getMessage()
        assert text.startswith(f"release {second} is not served, {first} stays: ")
        assert "items.npy: differs from its sha256" in text
        assert "\n" not in text
        matrix.write_bytes(good)
        followed.follower.ask()  # SIGHUP: no waiting for the next try
        await followed.until(lambda: followed.served.version == second)

    with caplog.at_level(logging.INFO):
        follow(Followed(own), body)


def test_a_pointer_to_nothing_leaves_the_old_one(
    own: MadeReleases, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(followed: Followed) -> None:
        (own.artifacts.root / "release" / "current").write_text("0" * 12)
        await followed.until(lambda: followed.read("serendip_reload_failures_total") == 1)
        (own.artifacts.root / "release" / "current").write_text(own.versions[1])
        await followed.until(lambda: followed.served.version == own.versions[1])
        assert len(caplog.records) == 1

    with caplog.at_level(logging.WARNING, "serendip.serving"):
        follow(Followed(own), body)


def test_a_check_that_dies_takes_nobody_along(
    own: MadeReleases, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # What a damaged graph does to its runtime at worst.
    monkeypatch.setattr("sys.executable", "/bin/false")

    async def body(followed: Followed) -> None:
        own.artifacts.make_current("release", own.versions[1])
        await followed.until(lambda: followed.read("serendip_reload_failures_total") == 1)
        assert followed.served.version == own.versions[0]
        assert "its check ended with 1" in caplog.text

    follow(Followed(own), body)


def test_what_was_swapped_out_is_let_go(own: MadeReleases) -> None:
    async def body(followed: Followed) -> None:
        gone = [weakref.ref(ranker) for ranker in followed.served.rankers.values()]
        for version in own.versions[1:]:
            own.artifacts.make_current("release", version)
            await followed.until(lambda version=version: followed.served.version == version)
        await asyncio.sleep(0.1)
        gc.collect()
        assert [ref() for ref in gone] == [None]
        maps = Path(f"/proc/{os.getpid()}/maps").read_text()
        first = own.artifacts.open("release", own.versions[0]).inputs["retriever"]
        assert str(own.artifacts.root / "retriever" / first) not in maps

    follow(Followed(own), body)


def test_a_server_that_starts_opens_the_release_before_as_well(
    own: MadeReleases, caplog: pytest.LogCaptureFixture
) -> None:
    own.artifacts.make_current("release", own.versions[1])
    serving = open_current(own.artifacts)
    assert serving.version == own.versions[1]
    assert list(serving.rankers) == [tree(own, 1), tree(own, 0)]
    assert list(open_release(own.artifacts).rankers) == [tree(own, 1)]
    before = own.artifacts.open("release", own.versions[0]).inputs["retriever"]
    (own.artifacts.root / "retriever" / before / "model.onnx").write_bytes(b"")
    assert list(open_current(own.artifacts).rankers) == [tree(own, 1)]
    assert "model.onnx" in caplog.text
    caplog.clear()
    shutil.rmtree(own.artifacts.root / "retriever" / before)  # pruned
    assert list(open_current(own.artifacts).rankers) == [tree(own, 1)]
    assert caplog.text == ""


def test_withheld_items_are_followed_and_outlast_a_reload(own: MadeReleases) -> None:
    file = own.artifacts.root / "withheld.txt"
    file.write_text("")
    query = RetrievalQuery((), (0,), 3)

    def top(ranker: Any) -> list[str]:
        (found,) = ranker.retrieve([query])
        assert isinstance(found, Retrieval)
        return [c.item_id for c in found.candidates]

    async def body(followed: Followed) -> None:
        best = top(followed.served.newest)
        file.write_text(f"{best[0]}\nno-such-item\n")
        await followed.until(lambda: top(followed.served.newest)[:2] == best[1:])
        own.artifacts.make_current("release", own.versions[1])
        await followed.until(lambda: followed.served.version == own.versions[1])
        assert all(best[0] not in top(r) for r in followed.served.rankers.values())
        file.write_bytes(b"\xff")
        await followed.until(lambda: followed.read("serendip_withhold_failures_total") == 1)
        assert best[0] not in top(followed.served.newest)
        file.write_text("")
        await followed.until(lambda: top(followed.served.newest) == best)

    registry = CollectorRegistry()
    followed = Followed(own, withheld=WithheldFile(file, registry))
    followed.read = lambda name: registry.get_sample_value(name) or 0.0  # type: ignore[method-assign]
    follow(followed, body)


def test_every_batch_size_is_warmed_with_histories_of_its_own(
    made: MadeReleases, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = made.rankers[0]
    shapes, rows = [], []
    real = ranker.users._encode

    def encode(ids: Any, length: Any) -> Any:
        shapes.append(ids.shape)
        rows.extend(map(tuple, ids.tolist()))
        return real(ids, length)

    monkeypatch.setattr(ranker.users, "_encode", encode)
    warm(ranker, 5)
    assert shapes == [(size, ranker.max_history) for size in range(1, 6)]
    assert len(set(rows)) == len(rows), "equal histories may be encoded once"


def test_workers_take_turns_and_tell_what_is_good(tmp_path: Path) -> None:
    with (tmp_path / "turns").open("w+b") as file:
        one, other = Turns(file.fileno()), Turns(os.dup(file.fileno()))
        with one.take():
            assert one.checked == ""
            one.checked = "a" * 12
        with other.take():
            assert other.checked == "a" * 12
            other.checked = "b" * 12
        with one.take():
            assert one.checked == "b" * 12
            code = (
                "import sys; from serendip.serving.turns import Turns\n"
                "with Turns(int(sys.argv[1])).take() as _: print('has it')"
            )
            waiting = subprocess.Popen(
                [sys.executable, "-c", code, str(file.fileno())],
                pass_fds=[file.fileno()],
                stdout=subprocess.PIPE,
                text=True,
            )
            time.sleep(0.5)
            assert waiting.poll() is None, "another process did not wait for its turn"
        assert waiting.communicate(timeout=10)[0] == "has it\n"
