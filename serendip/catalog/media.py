"""Bounded decoding of images and videos from outside, and the hash that makes a plan stale.

Whatever the bytes are, the answer is an array or a MediaError. The format is found by content,
sizes are checked before pixels are made, and a container can make the demuxer open no other
file. This module knows no catalogue and no model.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NoReturn

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from PIL import Image, ImageOps, UnidentifiedImageError

from serendip.core import BOUNDS, Bounds, Item, MediaError

Pixels = npt.NDArray[np.uint8]

# Self-contained formats alone: a playlist or a list of files would name others to read.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
# A few bytes of a container can promise millions of frames.
_MAX_FRAMES_A_SECOND = 240
_HASH_CHUNK = 1 << 20
_SAVE_AGAIN = "Save it again as mp4 (H.264)."


# --- images ------------------------------------------------------------------------------


def decode_image(
    source: bytes | Path, bounds: Bounds = BOUNDS, max_side: int | None = None
) -> Pixels:
    """uint8[H, W, 3], RGB, of a JPEG or PNG, upright as its EXIF orientation says.

    Alpha is laid over white; of an animated PNG the first picture is taken.

    Args:
        source: the encoded bytes, or the path of a file.
        max_side: scale down so that neither side is longer; None: as it is.

    Raises:
        MediaError: no such file, neither JPEG nor PNG, over bounds.image_bytes or
            bounds.pixels, truncated or damaged.
    """
    name = _name(source, "thumbnail")
    with _opened(source, name, bounds.image_bytes) as file:
        try:
            with Image.open(file, formats=("JPEG", "PNG")) as image:
                _check_pixels(name, image.width, image.height, bounds)
                if max_side is not None:
                    # JPEG decodes to an eighth of its size for an eighth of the work.
                    image.draft(None, (max_side, max_side))
                upright = ImageOps.exif_transpose(image)
                flat = _flatten(upright)
                return np.array(flat.resize(_fit(*flat.size, max_side), Image.Resampling.BOX))
        except MediaError:
            raise
        except Image.DecompressionBombError:
            _refuse_pixels(name, "a decompression bomb", bounds)
        except UnidentifiedImageError:
            file.seek(0)
            _refuse(name, "is neither JPEG nor PNG", "Save it as one of them.", file.read(8))
        except Exception as e:
            # Pillow raises OSError, SyntaxError, ValueError and more, as the damage has it.
            _refuse(name, "cannot be decoded", "Save it again as JPEG or PNG.", _reason(e))


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a pixel: Pillow would clip at 255 where the upper byte is meant.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


# --- videos ------------------------------------------------------------------------------


def sample_frames(
    source: bytes | Path, count: int, bounds: Bounds = BOUNDS, max_side: int | None = None
) -> list[Pixels]:
    """``count`` frames, uint8[H, W, 3] RGB: those shown in the middle of ``count`` equal parts.

    A first pass over the packets finds every frame's time without decoding; then only the
    stretches from a keyframe to a wanted frame are decoded. A video of fewer frames repeats
    some. Sound is not read. Frames are upright as the video's rotation says.

    Args:
        source: the encoded bytes, or the path of a file: mp4, mov, Matroska, WebM or AVI.
        max_side: scale down so that neither side is longer; None: as it is.

    Raises:
        MediaError: no such file, no video, no video stream, over bounds.video_bytes,
            bounds.pixels or bounds.video_seconds, truncated or damaged.
    """
    if count < 1:
        return []
    name = _name(source, "video")
    with _opened(source, name, bounds.video_bytes) as file:
        try:
            with _container(file, bounds) as container:
                stream = _video_stream(container, name, bounds)
                timeline = _read_timeline(container, stream, name, bounds)
                wanted = timeline.middles(count)
                made = {
                    time: _to_rgb(frame, name, bounds, max_side)
                    for time, frame in _decode(container, stream, timeline, wanted)
                }
                if not made:
                    _refuse(name, "has no frame that can be decoded", _SAVE_AGAIN)
                return [made[time] for time in wanted]
        except MediaError:
            raise
        except Exception as e:
            # Each damage has its own class in FFmpeg, and Python's own come through as well.
            _refuse(name, "cannot be decoded", _SAVE_AGAIN, _reason(e))


@dataclass(frozen=True)
class _Timeline:
    """The frames of a stream by the time that they are shown.

    Attributes:
        times: of each frame, ascending; in the stream's time base, or 0, 1, 2, ... where the
            container does not tell them.
        keyframes: times of the frames where decoding can start, ascending; empty where only
            the beginning will do.
        end: when the last frame ends.
        told: whether the container tells the times.
    """

    times: list[int]
    keyframes: list[int]
    end: int
    told: bool

    def middles(self, count: int) -> list[int]:
        """Times of the frames shown in the middle of each of ``count`` equal parts."""
        first, span = self.times[0], self.end - self.times[0]
        middles = [first + Fraction(span * (2 * i + 1), 2 * count) for i in range(count)]
        return [self.times[max(0, bisect_right(self.times, t) - 1)] for t in middles]

    def start_for(self, time: int) -> int | None:
        """Time of the last keyframe that is not after a frame; None: the beginning."""
        at = bisect_right(self.keyframes, time) - 1
        return self.keyframes[at] if at > 0 else None


def _container(file: BinaryIO, bounds: Bounds) -> InputContainer:
    return av.open(
        _Unnamed(file),
        "r",
        # Frames are decoded while the streams are looked at, and may grow later on: the
        # decoder has to keep the bound itself.
        options={"max_pixels": str(bounds.pixels)},
        container_options={"format_whitelist": _CONTAINERS},
        io_open=_open_nothing,
    )


class _Unnamed:
    """A file without its name, which FFmpeg would take for a hint at the format."""

    def __init__(self, file: BinaryIO):
        self.read = file.read
        self.seek = file.seek
        self.tell = file.tell


def _open_nothing(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError(f"the video refers to another file, {url!r}")


def _video_stream(container: InputContainer, name: str, bounds: Bounds) -> VideoStream:
    streams = [s for s in container.streams.video if Disposition.attached_pic not in s.disposition]
    if not streams:
        _refuse(name, "has no video stream", "Bring a file with pictures, or null for none.")
    stream = streams[0]
    if stream.codec_context is None:
        _refuse(name, "is coded in a way that is not known here", "Save it as mp4 (H.264).")
    _check_pixels(name, stream.width, stream.height, bounds)
    if container.duration is not None:
        _check_seconds(name, container.duration / av.time_base, bounds)
    for other in container.streams:
        if other is not stream:
            other.discard = Discard.all
    # Who decodes many videos runs many at a time; threads of one would only contend.
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(bounds.pixels)}
    return stream


def _read_timeline(
    container: InputContainer, stream: VideoStream, name: str, bounds: Bounds
) -> _Timeline:
    """Goes through the packets, decoding none."""
    tick = stream.time_base or Fraction(1, 1)
    times: list[int] = []
    keyframes: list[int] = []
    # AVI has no times, and FFmpeg numbers its packets in the order of decoding.
    told = container.format.name != "avi"
    last_duration = 0
    for packet in container.demux(stream):
        if packet.is_corrupt:
            _refuse(name, "is cut off or damaged", "Bring the whole file.")
        if packet.size == 0:
            continue
        time = packet.pts
        if time is None:
            told = False
            time = packet.dts if packet.dts is not None else len(times)
        if packet.is_keyframe:
            keyframes.append(time)
        if packet.is_discard:
            continue
        if not times or time >= max(times[0], times[-1]):
            last_duration = packet.duration or 0
        times.append(time)
        if len(times) > bounds.video_seconds * _MAX_FRAMES_A_SECOND:
            _refuse(name, "has too many frames", "Cut it, or lower its frame rate.", len(times))
        _check_seconds(name, float((time - times[0]) * tick), bounds)
    if not times:
        _refuse(name, "has no frames", "Bring the whole file.")
    if not told:
        return _Timeline(list(range(len(times))), [], len(times), told)
    times.sort()
    keyframes.sort()
    even = (times[-1] - times[0]) // max(len(times) - 1, 1)
    end = times[-1] + max(last_duration or even, 1)
    _check_seconds(name, float((end - times[0]) * tick), bounds)
    return _Timeline(times, keyframes, end, told)


def _decode(
    container: InputContainer, stream: VideoStream, timeline: _Timeline, wanted: list[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """The wanted frames, each once, with their times."""
    stretches: dict[int | None, list[int]] = {}
    for time in sorted(set(wanted)):
        stretches.setdefault(timeline.start_for(time), []).append(time)
    for start, targets in stretches.items():
        frames = _frames_from(container, stream, start, timeline.told)
        first = next(frames, None)
        if start is not None and (first is None or first[0] > targets[0]):
            # The index leads past the frame, or the keyframe is one that the picture only
            # begins to recover from.
            frames = _frames_from(container, stream, None, timeline.told)
            first = next(frames, None)
        if first is None:
            return
        frame = first
        for target in targets:
            while frame[0] < target and (following := next(frames, None)) is not None:
                frame = following
            yield target, frame[1]


def _frames_from(
    container: InputContainer, stream: VideoStream, start: int | None, told: bool
) -> Iterator[tuple[int, VideoFrame]]:
    """Decoded frames with their times, in the order shown, from a keyframe at or before start."""
    earliest = min(0, stream.start_time or 0)
    container.seek(earliest if start is None else start, stream=stream, backward=True)
    for at, frame in enumerate(container.decode(stream)):
        if not told:
            yield at, frame
        elif frame.pts is not None:
            yield frame.pts, frame


def _to_rgb(frame: VideoFrame, name: str, bounds: Bounds, max_side: int | None) -> Pixels:
    _check_pixels(name, frame.width, frame.height, bounds)
    width, height = _fit(frame.width, frame.height, max_side)
    rgb = frame.reformat(width, height, "rgb24", interpolation=Interpolation.AREA)
    turned = np.rot90(rgb.to_ndarray(), round(frame.rotation / 90))
    return np.ascontiguousarray(turned, np.uint8)


# --- hash --------------------------------------------------------------------------------


def media_hash(item: Item) -> str:
    """16 hexadecimal digits of sha256 over an item's thumbnail and video, as encoded.

    A plan made under another media hash is stale. A picture hashes the same as bytes and as a
    file; an absent one differs from an empty one; thumbnail and video cannot be mistaken for
    each other.

    Raises:
        MediaError: a file that is not there or cannot be read.
    """
    whole = hashlib.sha256()
    for name, source in (("thumbnail", item.thumbnail), ("video", item.video)):
        whole.update(f"{name}:".encode())
        if source is None:
            whole.update(b"none;")
            continue
        part = hashlib.sha256()
        with _opened(source, _name(source, name), None) as file:
            try:
                while chunk := file.read(_HASH_CHUNK):
                    part.update(chunk)
            except OSError as e:
                _refuse(str(source), "cannot be read", "Check the disk.", _reason(e))
        whole.update(part.hexdigest().encode() + b";")
    return whole.hexdigest()[:16]


# --- common ------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(source: bytes | Path, name: str, max_bytes: int | None) -> Iterator[BinaryIO]:
    """The encoded bytes as a file, closed at the end. Raises MediaError."""
    if isinstance(source, bytes):
        _check_bytes(name, len(source), max_bytes)
        yield io.BytesIO(source)
        return
    try:
        # Opening a pipe or a device would wait for a writer.
        if not source.is_file():
            _refuse(name, "no such file", "Put the file there, or write null for none.")
        file = source.open("rb")
    except (OSError, ValueError) as e:
        _refuse(name, "cannot be opened", "Check the path and the permissions.", _reason(e))
    with file:
        _check_bytes(name, source.stat().st_size, max_bytes)
        yield file


def _check_bytes(name: str, size: int, max_bytes: int | None) -> None:
    if size == 0 and max_bytes is not None:
        _refuse(name, "is empty", "Bring the whole file, or null for none.")
    if max_bytes is not None and size > max_bytes:
        _refuse(name, f"must have at most {max_bytes} bytes", "Make it smaller.", size)


def _check_pixels(name: str, width: int, height: int, bounds: Bounds) -> None:
    if not 0 < width * height <= bounds.pixels:
        _refuse_pixels(name, f"{width}x{height}", bounds)


def _check_seconds(name: str, seconds: float, bounds: Bounds) -> None:
    if seconds > bounds.video_seconds:
        _refuse_length(name, seconds, bounds)


def _refuse_pixels(name: str, value: str, bounds: Bounds) -> NoReturn:
    _refuse(name, f"must have 1 to {bounds.pixels} pixels", "Scale it down.", value)


def _refuse_length(name: str, seconds: float, bounds: Bounds) -> NoReturn:
    _refuse(name, f"must last at most {bounds.video_seconds:g} s", "Cut it.", seconds)


def _refuse(name: str, message: str, remedy: str, value: object = None) -> NoReturn:
    raise MediaError(message, field=name, value=value, remedy=remedy)


def _name(source: bytes | Path, otherwise: str) -> str:
    return str(source) if isinstance(source, Path) else otherwise


def _reason(e: Exception) -> str:
    said = e.strerror if isinstance(e, OSError | av.FFmpegError) else str(e)
    return said or type(e).__name__


def _fit(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """The size that keeps the ratio with neither side longer than ``max_side``."""
    longest = max(width, height)
    if max_side is None or longest <= max_side:
        return width, height
    return (
        max(1, round(width * max_side / longest)),
        max(1, round(height * max_side / longest)),
    )
