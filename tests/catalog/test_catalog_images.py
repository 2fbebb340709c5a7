"""Decoding of images: what comes out, and what is refused before it costs anything."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serendip.catalog.media import decode_image, media_hash
from serendip.core import Bounds, Item, MediaError

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def test_a_jpeg_from_bytes_and_from_a_file(jpeg: bytes, tmp_path: Path) -> None:
    pixels = decode_image(jpeg)
    assert (pixels.shape, pixels.dtype) == ((20, 40, 3), np.uint8)
    assert np.abs(pixels[10, 5] - np.array(RED)).max() < 12
    assert np.abs(pixels[10, 35] - np.array(BLUE)).max() < 12
    path = tmp_path / "named.wrong"
    path.write_bytes(jpeg)
    assert np.array_equal(decode_image(path), pixels)


def test_scaling_down_keeps_the_ratio_and_never_scales_up(jpeg: bytes) -> None:
    assert decode_image(jpeg, max_side=10).shape == (5, 10, 3)
    assert decode_image(jpeg, max_side=100).shape == (20, 40, 3)
    thin = encode(Image.new("RGB", (300, 1), RED), "PNG")
    assert decode_image(thin, max_side=10).shape == (1, 10, 3)


def test_exif_orientation_is_honoured(jpeg: bytes) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = encode(Image.open(io.BytesIO(jpeg)), "JPEG", exif=exif, quality=95)
    pixels = decode_image(turned)
    assert pixels.shape == (40, 20, 3)
    assert np.abs(pixels[5, 10] - np.array(RED)).max() < 30
    assert decode_image(turned, max_side=10).shape == (10, 5, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("LA", (4, 4), (0, 0)), WHITE),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), WHITE),
        (Image.new("RGB", (4, 4), BLUE).quantize(), BLUE),
        (Image.fromarray(np.full((4, 4), 77 * 256 + 9, np.uint16)), (77, 77, 77)),
    ],
    ids=["clear", "shade", "grey-alpha", "grey", "bit", "palette", "16-bit"],
)
def test_every_kind_of_png_becomes_rgb(image: Image.Image, expected: tuple[int, ...]) -> None:
    pixels = decode_image(encode(image, "PNG"))
    assert pixels.shape == (4, 4, 3)
    assert np.array_equal(pixels[2, 2], expected)


def test_a_transparent_palette_becomes_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    assert np.array_equal(decode_image(encode(image, "PNG", transparency=1))[0, 0], WHITE)


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    pixels = decode_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(pixels[4, 4] - np.array(RED)).max() < 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_truncated_image_is_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = encode(Image.fromarray(noise), kind)
    with pytest.raises(MediaError) as caught:
        decode_image(whole[: int(len(whole) * share)])
    assert caught.value.field == "thumbnail"
    assert caught.value.remedy


def test_a_gif_by_another_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(encode(Image.new("RGB", (4, 4)), "GIF"))
    with pytest.raises(MediaError, match="neither JPEG nor PNG") as caught:
        decode_image(path)
    assert caught.value.field == str(path)
    assert caught.value.value == b"GIF87a\x04\x00"


def test_too_many_pixels_are_refused_by_the_header(huge_png: bytes, jpeg: bytes) -> None:
    with pytest.raises(MediaError, match="pixels"):
        decode_image(huge_png)
    assert decode_image(jpeg, Bounds(pixels=800)).shape == (20, 40, 3)
    with pytest.raises(MediaError, match="1 to 799 pixels") as caught:
        decode_image(jpeg, Bounds(pixels=799))
    assert caught.value.value == "40x20"


def test_too_many_bytes_are_refused(jpeg: bytes, tmp_path: Path) -> None:
    bounds = Bounds(image_bytes=len(jpeg) - 1)
    (tmp_path / "picture.jpg").write_bytes(jpeg)
    for source in (jpeg, tmp_path / "picture.jpg"):
        with pytest.raises(MediaError, match="at most") as caught:
            decode_image(source, bounds)
        assert caught.value.value == len(jpeg)
    assert decode_image(jpeg, Bounds(image_bytes=len(jpeg))).shape == (20, 40, 3)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for name in ("absent", ".", "pipe", "empty", "x" * 5000, "a\0b"):
        with pytest.raises(MediaError):
            decode_image(tmp_path / name)
    with pytest.raises(MediaError, match="empty"):
        decode_image(b"")


def test_damage_of_every_kind_ends_in_a_media_error(jpeg: bytes, huge_png: bytes) -> None:
    rng = np.random.default_rng(1)
    png = encode(Image.open(io.BytesIO(jpeg)), "PNG")
    decoded = refused = 0
    for whole in (jpeg, png, huge_png):
        for _ in range(150):
            broken = bytearray(whole)
            for at in rng.integers(0, len(whole), 4):
                broken[at] = rng.integers(256)
            try:
                decode_image(bytes(broken), Bounds(pixels=10_000))
                decoded += 1
            except MediaError:
                refused += 1
    assert decoded > 0
    assert refused > 100


def test_the_media_hash_follows_the_media(jpeg: bytes, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(jpeg)
    other = tmp_path / "other"
    other.write_bytes(jpeg + b"x")
    known = media_hash(Item("a", "title", thumbnail=jpeg, video=path))
    assert len(known) == 16
    assert int(known, 16) >= 0
    assert media_hash(Item("b", "other title", thumbnail=path, video=path)) == known
    others = [
        Item("a", ""),
        Item("a", "", thumbnail=b""),
        Item("a", "", thumbnail=jpeg),
        Item("a", "", video=path),
        Item("a", "", thumbnail=jpeg, video=other),
        Item("a", "", thumbnail=jpeg + b"x", video=path),
    ]
    assert len({known, *map(media_hash, others)}) == 7
    with pytest.raises(MediaError, match="no such file"):
        media_hash(Item("a", "", video=tmp_path / "absent"))
