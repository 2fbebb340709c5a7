"""Items whose media show the same: what is found, what is not, and how often by mistake."""

import io

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from serendip.catalog import look_alikes as la
from serendip.catalog import render
from serendip.catalog.look_alikes import Signatures, alike, look_alikes

BITS = 3


def scene(seed, facet=None):
    """A scene of a facet that is drawn by the seed, or of a given one."""
    rng = np.random.default_rng([7, seed])
    facet = int(rng.integers(4)) if facet is None else facet
    return render.draw(render.random_scene(facet, rng), rng)


def encode(picture, kind="JPEG", side=None, quality=90):
    image = Image.fromarray(picture)
    file = io.BytesIO()
    (image.resize((side, side)) if side else image).save(file, kind, quality=quality)
    return file.getvalue()


def film(path, *pictures, crf=20):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width = stream.height = render.SIDE
        stream.pix_fmt = "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": str(crf), "threads": "1"}
        for picture in pictures:
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def catalogue(tmp_path):
    """Writes items: ID -> (thumbnail's bytes or None, video's file name or None)."""

    def write(**items):
        thumbnails, videos = zip(*items.values(), strict=True)
        pq.write_table(
            pa.table(
                {
                    "item_id": list(items),
                    "title": ["a"] * len(items),
                    "text": [""] * len(items),
                    "thumbnail": pa.array(thumbnails, pa.binary()),
                    "video": pa.array(videos, pa.string()),
                    "created_at": [0] * len(items),
                }
            ),
            tmp_path / "items.parquet",
        )
        return tmp_path

    return write


def found(folder, these, those, bits=BITS):
    return look_alikes(folder, set(these), set(those), bits)


def pairs_of(these, those):
    """All pairs that are alike, in order."""
    blocks = [np.stack(block, axis=1) for block in alike(these, those, BITS)]
    return sorted(map(tuple, np.concatenate(blocks).tolist()))


def test_a_picture_is_known_in_another_size_quality_and_format(catalogue):
    folder = catalogue(
        held=(encode(scene(0)), None),
        same=(encode(scene(0)), None),
        png=(encode(scene(0), "PNG"), None),
        large=(encode(scene(0), side=160, quality=75), None),
        poor=(encode(scene(0), quality=50), None),
        other=(encode(scene(1)), None),
        broken=(b"\xff\xd8 no picture", None),
        none=(None, None),
    )
    these = {"same", "png", "large", "poor", "other", "broken", "none"}
    assert found(folder, these, {"held"}) == {"same", "png", "large", "poor"}
    assert found(folder, {"held"}, these) == {"held"}
    assert found(folder, these, set()) == set()


def test_one_thumbnail_of_two_films_makes_them_no_duplicates(catalogue, tmp_path):
    film(tmp_path / "one.mp4", scene(1, 0), scene(2, 1), scene(3, 2))
    film(tmp_path / "two.mp4", scene(4, 3), scene(5, 3), scene(6, 3))
    film(tmp_path / "again.mp4", scene(1, 0), scene(2, 1), scene(3, 2), crf=26)
    stock = encode(scene(0))
    folder = catalogue(
        held=(stock, "one.mp4"),
        series=(stock, "two.mp4"),
        again=(stock, "again.mp4"),
        still=(stock, None),
        lost=(stock, "none.mp4"),
    )
    assert found(folder, {"series", "again", "still", "lost"}, {"held"}) == {"again", "still"}


def test_the_same_film_is_known_by_its_bytes_and_without_a_thumbnail_by_its_middle(
    catalogue, tmp_path
):
    film(tmp_path / "one.mp4", scene(1, 0), scene(2, 1), scene(3, 2))
    film(tmp_path / "again.mp4", scene(1, 0), scene(2, 1), scene(3, 2), crf=26)
    (tmp_path / "copy.mp4").write_bytes((tmp_path / "one.mp4").read_bytes())
    folder = catalogue(
        held=(encode(scene(0)), "one.mp4"),
        bare=(None, "one.mp4"),
        copy=(encode(scene(9)), "copy.mp4"),
        again=(None, "again.mp4"),
        other=(encode(scene(9)), None),
    )
    assert found(folder, {"copy", "again", "other"}, {"held", "bare"}) == {"copy", "again"}


def test_plain_scenes_are_told_apart_by_their_colours():
    pictures = [scene(seed) for seed in range(400)]
    signed = Signatures.of(pictures)
    pairs = pairs_of(signed, signed)
    wrong = {(a, b) for a, b in pairs if a != b}
    assert len(pairs) - len(wrong) == len(pictures)
    assert len({a for a, _ in wrong}) / len(pictures) < 0.02
    near = signed.bits @ signed.bits.T >= 64 - 2 * BITS
    assert (near.sum(axis=1) > 1).mean() > 0.2  # shapes alone would take many for one another


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    drawn = Signatures.of([scene(int(s)) for s in rng.integers(0, 30, 90)])
    these, those = drawn.at(slice(0, 40)), drawn.at(slice(40, 90))
    whole = pairs_of(these, those)
    assert whole
    monkeypatch.setattr(la, "_PAIRS_AT_ONCE", 7)
    assert pairs_of(these, those) == whole


def test_bits_are_counted(catalogue):
    a, b = np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)
    b[0, 1] = b[2, 1] = b[4, 1] = 30  # three cells are lighter than what is left of them
    folder = catalogue(held=(encode(a, "PNG"), None), near=(encode(b, "PNG"), None))
    assert found(folder, {"near"}, {"held"}, 3) == {"near"}
    assert found(folder, {"near"}, {"held"}, 2) == set()
