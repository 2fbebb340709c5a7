"""A small data folder and real media, for the tests of the catalogue."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

SIDE = 64

Write = Callable[..., Path]


def _columns(defaults: Mapping[str, Any], changes: Mapping[str, Any]) -> pa.Table:
    """A table of ``defaults`` and ``changes``; a column that is changed to None is left out."""
    return pa.table({k: v for k, v in {**defaults, **changes}.items() if v is not None})


@pytest.fixture
def write_items(tmp_path: Path) -> Write:
    """Writes items.parquet of items a, b, c; single columns can be replaced or left out."""

    def write(**changes: Any) -> Path:
        defaults = {
            "item_id": ["a", "b", "c"],
            "title": ["Ants", "Bees", "Crabs"],
            "text": ["", "They hum.", ""],
            "thumbnail": ["media/a.jpg", None, "media/c.jpg"],
            "video": [None, "media/b.mp4", None],
            "created_at": [1, 2, 3],
        }
        pq.write_table(_columns(defaults, changes), tmp_path / "items.parquet")
        return tmp_path

    return write


@pytest.fixture
def write_interactions(tmp_path: Path) -> Write:
    """Writes interactions.parquet of four rows; columns can be replaced or left out."""

    def write(**changes: Any) -> Path:
        defaults = {
            "user_id": ["u", "u", "v", "v"],
            "item_id": ["a", "b", "c", "a"],
            "timestamp": [1000, 2000, 1500, 9000],
            "satisfaction": [0.0, 1.0, 0.25, 0.5],
        }
        pq.write_table(_columns(defaults, changes), tmp_path / "interactions.parquet")
        return tmp_path

    return write


@pytest.fixture
def write_impressions(tmp_path: Path) -> Write:
    """Writes impressions.parquet of two rows; columns can be replaced or left out."""

    def write(**changes: Any) -> Path:
        defaults = {
            "request_id": ["r", "r"],
            "user_id": ["u", "u"],
            "item_id": ["a", "b"],
            "timestamp": [1000, 1000],
            "position": pa.array([0, 1], pa.int32()),
            "nominated_by": ["relevance", "relevance"],
            "propensity": [0.5, None],
            "satisfaction": [None, 0.75],
        }
        pq.write_table(_columns(defaults, changes), tmp_path / "impressions.parquet")
        return tmp_path

    return write


def encode_image(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def jpeg() -> bytes:
    """A JPEG of 40 x 20 pixels: left half red, right half blue."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20, 0] = 255
    pixels[:, 20:, 2] = 255
    return encode_image(Image.fromarray(pixels), quality=95, subsampling=0)


@pytest.fixture
def huge_png() -> bytes:
    """A few bytes of PNG whose header promises 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


def numbered_picture(number: int) -> np.ndarray:
    """uint8[SIDE, SIDE, 3] that shows a number, modulo 120, by the grey of its halves."""
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    pixels[:, : SIDE // 2] = 16 + number % 15 * 15
    pixels[:, SIDE // 2 :] = 16 + number // 15 % 8 * 30
    return pixels


@pytest.fixture(scope="session")
def number_of() -> Callable[[np.ndarray], int]:
    """Reads the number that a frame shows."""

    def read(frame: np.ndarray) -> int:
        middle = frame.shape[1] // 2
        low = round((float(frame[:, 4 : middle - 4].mean()) - 16) / 15)
        return low + 15 * round((float(frame[:, middle + 4 : -4].mean()) - 16) / 30)

    return read


@pytest.fixture(scope="session")
def make_video(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Encodes a video of numbered frames."""
    path = tmp_path_factory.mktemp("video") / "video"

    def make(
        frames: int = 30,
        *,
        rate: int = 10,
        kind: str = "mp4",
        codec: str = "libx264",
        pixels: str = "yuv420p",
        options: Mapping[str, str] | None = None,
        muxing: Mapping[str, str] | None = None,
        rotation: float = 0.0,
        sound: bool = False,
    ) -> bytes:
        with av.open(str(path), "w", format=kind, options=dict(muxing or {})) as container:
            tone = container.add_stream("aac", rate=8000, layout="mono") if sound else None
            if frames:
                stream = container.add_stream(codec, rate=rate)
                stream.width = stream.height = SIDE
                stream.pix_fmt = pixels
                stream.options = {"g": "8", "bf": "2", "threads": "1", **(options or {})}
                if rotation:
                    stream.set_display_rotation(rotation)
                for number in range(frames):
                    frame = av.VideoFrame.from_ndarray(numbered_picture(number), format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode())
            if tone is not None:
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 8000), np.float32), format="fltp", layout="mono"
                )
                silence.sample_rate = 8000
                container.mux(tone.encode(silence))
                container.mux(tone.encode())
        return path.read_bytes()

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real films and clips beside the repository, which few have."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data for development (../shared/data) is not here")
    return folder
