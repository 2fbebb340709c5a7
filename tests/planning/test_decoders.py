"""Media are decoded in processes of their own; one that dies has one suspect."""

import re
from pathlib import Path

import deadly
import numpy as np
import pytest
from PIL import Image

from serendip.core import Item, MediaError
from serendip.planning.decoders import Decoders, Patience, UnsureError, processes
from serendip.planning.prompt import load_content
from serendip.planning.style import STYLES

LOOKS = STYLES["video_cot"]


@pytest.fixture
def item(tmp_path):
    """Makes items whose thumbnails are real files."""

    def make(item_id, title=""):
        path = tmp_path / f"{item_id}.png"
        seed = int.from_bytes(item_id.encode(), "little")
        pixels = np.random.default_rng(seed).integers(0, 255, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return Item(item_id=item_id, title=title, text="", thumbnail=path, video=None)

    return make


def test_contents_come_in_the_order_of_the_items(item):
    items = [item(f"i{n}", f"title {n}") for n in range(20)]
    with Decoders(3, LOOKS, 0) as pool:
        for _ in range(2):
            found = pool.load(items)
            for got, one in zip(found, items, strict=True):
                expected = load_content(one, LOOKS, 0)
                assert got.title == one.title
                assert np.array_equal(got.cover, expected.cover)


def test_what_cannot_be_decoded_has_a_reason(item, tmp_path):
    good, gone = item("good"), item("gone")
    Path(gone.thumbnail).unlink()
    with Decoders(1, LOOKS, 0) as pool:
        found = pool.load([gone, good])
    assert "gone.png: no such file" in str(found[0])
    assert not isinstance(found[0], UnsureError)
    assert found[1].images


@pytest.mark.parametrize(
    ("how", "reason"),
    [("crash", "its decoder was ended by SIGSEGV"), ("exit", "its decoder ended with 7"),
     ("bug", "cannot be decoded .ZeroDivisionError")],
)  # fmt: skip
def test_an_item_that_kills_its_decoder_is_named_and_harms_no_other(item, how, reason):
    items = [item("a"), item("deadly", how), item("b"), item("c")]
    with Decoders(2, LOOKS, 0, deadly.load) as pool:
        found = pool.load(items)
        assert [isinstance(f, MediaError) for f in found] == [False, True, False, False]
        assert isinstance(found[1], UnsureError)
        assert found[1].field == "deadly"
        assert re.search(reason, str(found[1]))
        assert pool.load(items[:1])[0].images


def test_what_was_in_hand_when_a_load_failed_is_not_taken_for_another_item(item, monkeypatch):
    items = [item("late", "late"), item("deadly", "exit"), item("a", "a"), item("b", "b")]
    with Decoders(2, LOOKS, 0, deadly.load) as pool:
        with monkeypatch.context() as patched:

            def no_more():
                raise OSError("no memory")

            patched.setattr(pool, "_hand", no_more)  # as where a process cannot be started
            with pytest.raises(OSError, match="no memory"):
                pool.load(items[:2])
        assert [found.title for found in pool.load(items[2:])] == ["a", "b"]


def test_a_decoder_that_cannot_be_started_leaves_no_pipe(monkeypatch):
    def no_more(process):
        raise OSError("no memory")

    monkeypatch.setattr(processes.Process, "start", no_more)
    made, pipe = [], processes.Pipe
    monkeypatch.setattr(processes, "Pipe", lambda: made.append(pipe()) or made[-1])
    with pytest.raises(OSError, match="no memory"):
        Decoders(1, LOOKS, 0)
    assert [end.closed for ends in made for end in ends] == [True, True]


def test_an_item_that_hangs_is_given_up(item):
    with Decoders(1, LOOKS, 0, deadly.load, Patience(seconds=2.0, deaths=2)) as pool:
        found = pool.load([item("slow", "hang"), item("a")])
    assert str(found[0]) == "slow: its decoder took longer than 2 s"
    assert found[1].images


def test_an_item_that_takes_too_much_work_is_given_up(item):
    with Decoders(1, LOOKS, 0, deadly.load, Patience(cpu_seconds=0.3, deaths=1)) as pool:
        found = pool.load([item("busy", "spin"), item("a")])
    assert str(found[0]) == "busy: its decoder was ended by SIGPROF"
    assert found[1].images


def test_an_item_whose_decoder_is_killed_by_another_is_tried_again(item):
    items = [item("a"), item("b")]
    with Decoders(2, LOOKS, 0, deadly.load_deadly_once) as pool:
        assert all(found.images for found in pool.load(items))


def test_a_style_that_does_not_look_decodes_nothing(item):
    with Decoders(1, STYLES["text"], 0, deadly.load) as pool:
        (content,) = pool.load([item("a", "crash")])
    assert content.title == "crash"
    assert not content.images
