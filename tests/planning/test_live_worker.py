"""A live worker: what it answers, what it survives, and what becomes of it."""

import io
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np
import parts
import pytest
import tiny_planner
from bulk_rows import all_gone
from PIL import Image

from serendip.catalog.media import media_hash
from serendip.core import (
    Constraint,
    CorruptArtifact,
    InvalidRequest,
    Item,
    MediaError,
    NotReady,
    SerendipError,
)
from serendip.planning import live_worker
from serendip.planning.decoders import processes
from serendip.planning.live_worker import Made, Query, Seat
from serendip.planning.plan_store import decode_plan
from serendip.planning.planner import Planner
from serendip.planning.prompt import Upload, load_content, load_inside
from serendip.planning.style import STYLES
from serendip.planning.workers import WorkerGoneError


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tiny_planner.publish(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def setup(published):
    _, tree, planner = published
    return tiny_planner.setup_of(planner, tree, tiny_planner.load)


@pytest.fixture(scope="module")
def renewed():
    return []


@pytest.fixture(scope="module")
def seat(setup, renewed):
    seat = Seat(setup, lambda: renewed.append(seat.pid))
    seat.wait()
    yield seat
    seat.close()


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def image(kind="JPEG", side=16):
    out = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(out, kind)
    return out.getvalue()


def video(seconds=1, rate=5, *, pictures=True):
    """An MP4; without pictures, sound alone."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        if pictures:
            stream = container.add_stream("mpeg4", rate=rate)
            stream.width = stream.height = 32
            for n in range(seconds * rate):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), n % 255, np.uint8), "rgb24")
                container.mux(stream.encode(frame))
        else:
            stream = container.add_stream("aac", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def png_bomb(side=30_000):
    """A few bytes that promise as many pixels as side squared."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def clusters(row):
    assert isinstance(row, Made), row
    return [c.node_id for c in decode_plan(row.plan).clusters]


def test_its_plans_are_those_of_the_planner_in_process(published, seat, tmp_path):
    _, tree, artifact = published
    own = tree.node_of(parts.ITEMS[0], parts.LEVEL)
    others = [n for n in tree.nodes.at_level(parts.LEVEL) if n != own]
    item = tiny_planner.item_of(tmp_path)
    queries = [
        Query(item, own),
        Query(item, own, constraint=Constraint.NONE),
        Query(item, own, exclude=(others[0],)),
        Query(Upload("rye", thumbnail=item.thumbnail.read_bytes())),
    ]
    planner = Planner.open(artifact, tree.nodes, tiny_planner.SEARCH)
    content = load_content(item, STYLES["video_cot"], 1)
    views = [
        planner.view(query.own, exclude=query.exclude, constraint=query.constraint)
        for query in queries
    ]
    owns = [query.own for query in queries]
    expected = planner.plan([content] * 4, owns, views=views)
    answers = seat.plan(queries)
    made = [decode_plan(row.plan) for row in answers.rows]
    assert [plan.context_item_id for plan in made] == [item.item_id] * 3 + [""]
    for got, wanted in zip(made, expected, strict=True):
        assert [c.node_id for c in got.clusters] == [c.node_id for c in wanted.clusters]
        assert [c.score for c in got.clusters] == pytest.approx([c.score for c in wanted.clusters])
    assert set(answers.seconds) == {"media", "encode", "prefill", "reasoning", "answer"}


def test_frames_and_videos_of_a_request_are_shown(published, seat):
    _, tree, _ = published
    whole = Upload("rye", thumbnail=image(), frames=tuple(image() for _ in range(32)))
    rows = seat.plan([Query(whole), Query(Upload("rye", video=video()))]).rows
    nodes = set(tree.nodes.at_level(parts.LEVEL))
    assert [set(clusters(row)) for row in rows] == [nodes, nodes]


@pytest.mark.parametrize(
    ("upload", "field", "says"),
    [
        (Upload("x", thumbnail=image("GIF")), "thumbnail", "neither JPEG nor PNG"),
        (Upload("x", thumbnail=image("WEBP")), "thumbnail", "neither JPEG nor PNG"),
        (
            Upload("x", thumbnail=b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"),
            "thumbnail",
            "neither JPEG nor PNG",
        ),
        (Upload("x", thumbnail=png_bomb()), "thumbnail", "pixels"),
        (Upload("x", thumbnail=image(side=64)[:300]), "thumbnail", "cannot be decoded"),
        (Upload("x", frames=(image(), png_bomb())), "frames[1]", "pixels"),
        (Upload("x", thumbnail=bytes((8 << 20) + 1)), "thumbnail", "at most 8388608 bytes"),
        (Upload("x", video=bytes((16 << 20) + 1)), "video", "at most 16777216 bytes"),
        (Upload("x", video=video(pictures=False)), "video", "no video stream"),
        (Upload("x", video=video()[:600]), "video", "cannot be decoded|cut off|coded in a way"),
        (Upload("x", video=video(61, rate=1)), "video", "at most 60 s"),
        (Upload("x", video=image()), "video", "cannot be decoded"),
        (Upload("crash", thumbnail=image()), "thumbnail", "decoder was ended by SIGSEGV"),
        (Upload("crash", video=b"x"), "video", "decoder was ended by SIGSEGV"),
        (Upload("x"), "thumbnail", "at least one image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_media_cost_their_own_row(seat, upload, field, says):
    good = Query(Upload("x", thumbnail=image(side=1)))  # one pixel is a picture
    before = seat.pid
    first, bad, last = seat.plan([good, Query(upload), good]).rows
    assert isinstance(bad, InvalidRequest)
    assert bad.field == field
    with pytest.raises(InvalidRequest, match=says):
        raise bad
    assert clusters(first) == clusters(last)
    assert seat.pid == before


def test_what_cannot_be_planned_costs_its_own_row(published, seat, tmp_path):
    _, tree, _ = published
    item = tiny_planner.item_of(tmp_path)
    everything = tuple(tree.nodes.at_level(parts.LEVEL))
    good, none_left = seat.plan([Query(item), Query(item, exclude=everything)]).rows
    assert len(clusters(good)) == 4
    assert isinstance(none_left, InvalidRequest)


def test_media_that_are_what_they_were_are_told(seat, tmp_path):
    steady, changing = (
        tiny_planner.item_of(tmp_path, item_id, title)
        for item_id, title in (("steady", "rye"), ("changing", "changes"))
    )
    kept, changed, unasked = seat.plan(
        [Query(steady, keep=True), Query(changing, keep=True), Query(steady)]
    ).rows
    assert kept.media.hash == media_hash(steady)
    assert (changed.media, unasked.media) == (None, None)


def test_a_file_that_has_become_a_link_out_of_the_folder_is_not_read(tmp_path):
    data, outside = tmp_path / "data", tmp_path / "outside.png"
    (data / "media").mkdir(parents=True)
    tiny_planner.picture(outside)
    inside = tiny_planner.picture(data / "media" / "a.png")
    style = STYLES["video_cot"]
    read = partial(load_inside, data.resolve())
    assert read(Item("a", "a", thumbnail=inside), style, 1).images
    inside.unlink()
    inside.symlink_to(outside)
    with pytest.raises(MediaError, match=r"a: leads out of the data folder.*a\.png"):
        read(Item("a", "a", thumbnail=inside), style, 1)
    with pytest.raises(MediaError, match="leads out"):
        read(Item("a", "a", video=data / ".." / "outside.png"), style, 1)
    (data / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(MediaError, match="leads out"):
        read(Item("a", "a", thumbnail=data / "elsewhere" / "outside.png"), style, 1)


def test_a_row_that_kills_the_worker_fails_its_batch_and_another_worker_comes(
    seat, renewed, tmp_path
):
    good, deadly = (tiny_planner.item_of(tmp_path, title=title) for title in ("rye", "deadly"))
    before, times = seat.pid, len(renewed)
    with pytest.raises(WorkerGoneError, match="exit code -9"):
        seat.plan([Query(good), Query(deadly)])
    assert len(clusters(seat.plan([Query(good)]).rows[0])) == 4
    assert seat.pid != before
    until(lambda: len(renewed) == times + 1)


def test_a_worker_that_is_killed_while_idle_is_replaced_unasked(seat, renewed, tmp_path):
    before, times = seat.pid, len(renewed)
    os.kill(before, signal.SIGKILL)
    until(lambda: len(renewed) == times + 1)
    assert seat.pid != before
    assert clusters(seat.plan([Query(tiny_planner.item_of(tmp_path))]).rows[0])


def test_a_worker_that_cannot_be_started_is_tried_again(seat, renewed, tmp_path, monkeypatch):
    start, failed, times = processes.Process.start, [], len(renewed)

    def fails_twice(process):
        if len(failed) < 2:
            failed.append(1)
            raise RuntimeError("can't start new thread")
        start(process)

    monkeypatch.setattr(live_worker, "_MAX_DELAY_S", 0.05)
    monkeypatch.setattr(processes.Process, "start", fails_twice)
    os.kill(seat.pid, signal.SIGKILL)
    until(lambda: len(renewed) == times + 1)
    assert len(failed) == 2
    assert clusters(seat.plan([Query(tiny_planner.item_of(tmp_path))]).rows[0])


def test_a_worker_that_cannot_be_started_leaves_no_pipe(setup, monkeypatch):
    def no_more(process):
        raise OSError("no memory")

    monkeypatch.setattr(processes.Process, "start", no_more)
    made, pipe = [], processes.Pipe
    monkeypatch.setattr(processes, "Pipe", lambda: made.append(pipe()) or made[-1])
    with pytest.raises(OSError, match="no memory"):
        Seat(setup)
    assert [end.closed for ends in made for end in ends] == [True, True]


def test_a_planner_that_cannot_be_opened_is_told(setup, tmp_path):
    gone = replace(setup, planner=replace(setup.planner, path=tmp_path))
    seat = Seat(gone)
    with pytest.raises(CorruptArtifact, match="checkpoint"):
        seat.wait()
    with pytest.raises(NotReady, match="no live worker"):
        seat.plan([Query(Upload("x", thumbnail=image()))])
    seat.close()
    graphs = replace(setup, plans=setup.plans.model_copy(update={"runtime": "onnx"}))
    seat = Seat(graphs)
    with pytest.raises(SerendipError, match=r"plans\.runtime.*no ONNX graphs"):
        seat.wait()
    seat.close()


PARENT = """
import sys
from pathlib import Path
import tiny_planner
from serendip.artifacts import Artifacts
from serendip.planning.live_worker import Seat
from serendip.tree.cluster_tree import ClusterTree

if __name__ == "__main__":
    artifacts = Artifacts(Path(sys.argv[1]))
    tree = ClusterTree.open(artifacts.current("tree"))
    seat = Seat(tiny_planner.setup_of(artifacts.current("planner"), tree, tiny_planner.load))
    seat.wait()
    print(seat.pid, flush=True)
    sys.stdin.readline()
    sys.exit(3)
"""


@pytest.mark.parametrize("how", ["killed", pytest.param("ends", marks=pytest.mark.full)])
def test_a_worker_ends_with_who_started_it(published, tmp_path, how):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), str(published[0].root)]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    with parent:
        pid = int(parent.stdout.readline())
        below = children(pid)
        assert below, "it has a decoder"
        if how == "killed":
            parent.kill()
        else:
            parent.stdin.write("\n")
            parent.stdin.flush()
        assert parent.wait(20) == (-9 if how == "killed" else 3)
    assert all_gone([pid, *below])


def children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in found] + [d for c in found for d in children(int(c))]
