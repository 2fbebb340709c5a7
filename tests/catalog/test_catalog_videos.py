"""Sampling of video frames: the right ones from every container, and nothing but MediaError."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from serendip.catalog.media import decode_image, sample_frames
from serendip.core import Bounds, MediaError

Make = Callable[..., bytes]
Read = Callable[[np.ndarray], int]


def middles(frames: int, count: int) -> list[int]:
    return [(2 * i + 1) * frames // (2 * count) for i in range(count)]


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"options": {"bf": "0", "g": "250"}},
        {"options": {"x264-params": "open-gop=1:b-pyramid=normal"}},
        {"options": {"x264-params": "intra-refresh=1"}},
        {"muxing": {"movflags": "frag_keyframe+empty_moov"}},
        {"muxing": {"movflags": "faststart"}},
        {"codec": "mpeg4", "options": {"bf": "0", "b": "2000000"}},
        {"pixels": "yuv444p"},
        {"kind": "matroska"},
        {"kind": "matroska", "muxing": {"live": "1"}},
        {"kind": "avi"},
        {"kind": "mov", "sound": True},
    ],
    ids=str,
)
def test_frames_are_the_middles_of_equal_parts(
    make_video: Make, number_of: Read, kind: dict[str, Any]
) -> None:
    video = make_video(40, **kind)
    for count in (1, 2, 3, 40):
        frames = sample_frames(video, count)
        assert [number_of(f) for f in frames] == middles(40, count)
        assert {(f.shape, f.dtype.name) for f in frames} == {((64, 64, 3), "uint8")}


def test_a_short_video_repeats_its_frames(make_video: Make, number_of: Read) -> None:
    assert [number_of(f) for f in sample_frames(make_video(2), 6)] == [0, 0, 0, 1, 1, 1]
    assert [number_of(f) for f in sample_frames(make_video(1), 3)] == [0, 0, 0]
    assert sample_frames(make_video(1), 0) == []


def test_time_counts_and_not_the_number_of_frames(number_of: Read, make_video: Make) -> None:
    source = av.open(io.BytesIO(make_video(4, options={"bf": "0", "g": "1"})))
    out = io.BytesIO()
    with source, av.open(out, "w", format="mp4") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                # The last of four frames starts at 0.9 s of 1 s.
                time = (0, 1, 2, 9)[round(float(packet.pts * packet.time_base) * 10)]
                packet.pts = packet.dts = round(time / 10 / packet.time_base)
                packet.stream = stream
                container.mux(packet)
    assert [number_of(f) for f in sample_frames(out.getvalue(), 4)] == [1, 2, 2, 2]


def test_a_file_is_read_as_its_bytes_are(make_video: Make, tmp_path: Path) -> None:
    video = make_video(12)
    # Names that FFmpeg would take for a pattern of pictures and for a protocol.
    for name in ("%03d.jpg", "concat:a.mp4", "clip"):
        path = tmp_path / name
        path.write_bytes(video)
        for ours, theirs in zip(sample_frames(path, 3), sample_frames(video, 3), strict=True):
            assert np.array_equal(ours, theirs)


def test_frames_can_be_scaled_down(make_video: Make, number_of: Read) -> None:
    frames = sample_frames(make_video(12), 2, max_side=32)
    assert {f.shape for f in frames} == {(32, 32, 3)}
    assert [number_of(f) for f in frames] == middles(12, 2)
    assert sample_frames(make_video(12), 1, max_side=500)[0].shape == (64, 64, 3)


def test_rotation_is_honoured(make_video: Make) -> None:
    upright = sample_frames(make_video(4), 1)[0]
    for degrees in (90, 180, -90):
        turned = sample_frames(make_video(4, rotation=degrees), 1)[0]
        assert np.array_equal(turned, np.rot90(upright, degrees // 90))


def test_a_wrong_sound_track_does_no_harm(make_video: Make, number_of: Read) -> None:
    video = make_video(12, sound=True)
    with av.open(io.BytesIO(video)) as container:
        spans = [(p.pos, p.size) for p in container.demux(audio=0) if p.size]
    broken = bytearray(video)
    for at, size in spans:
        broken[at : at + size] = b"\xff" * size
    assert [number_of(f) for f in sample_frames(bytes(broken), 3)] == middles(12, 3)


def test_a_sound_file_has_no_video_stream(make_video: Make, tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    path.write_bytes(make_video(0, sound=True))
    with pytest.raises(MediaError, match="no video stream") as caught:
        sample_frames(path, 2)
    assert caught.value.field == str(path)
    assert caught.value.remedy


def test_a_cover_picture_is_no_video(jpeg: bytes, tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 40, 20, "yuvj420p"
        stream.disposition = Disposition.attached_pic
        container.mux(stream.encode(av.VideoFrame(40, 20, "yuvj420p")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(MediaError, match="no video stream"):
        sample_frames(path, 1)


def test_text_by_the_name_of_a_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    for text in ("once upon a time", "", "<svg xmlns='http://www.w3.org/2000/svg'/>"):
        path.write_text(text)
        with pytest.raises(MediaError) as caught:
            sample_frames(path, 2)
        assert caught.value.field == str(path)


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.ts\n#EXT-X-ENDLIST\n",
    ],
    ids=["concat", "hls"],
)
def test_a_list_of_other_files_is_never_followed(
    make_video: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "secret.mp4").write_bytes(make_video(12, options={"bf": "0", "g": "250"}))
    (tmp_path / "secret.ts").write_bytes(make_video(12, kind="mpegts", options={"bf": "0"}))
    monkeypatch.chdir(tmp_path)
    for name in ("list.m3u8", "list.mp4"):
        (tmp_path / name).write_text(text)
        with pytest.raises(MediaError):
            sample_frames(tmp_path / name, 2)
    with pytest.raises(MediaError):
        sample_frames(text.encode(), 2)
    # It is a true list: FFmpeg follows it where nobody forbids that.
    with av.open("list.m3u8") as followed:
        assert followed.streams.video


@pytest.mark.parametrize("faststart", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_mp4_is_refused(make_video: Make, faststart: bool, share: float) -> None:
    video = make_video(40, muxing={"movflags": "faststart"} if faststart else {})
    with pytest.raises(MediaError):
        sample_frames(video[: int(len(video) * share)], 4)


def test_too_long_a_video_is_refused(make_video: Make) -> None:
    video = make_video(30, rate=10)
    assert len(sample_frames(video, 2, Bounds(video_seconds=3.1))) == 2
    with pytest.raises(MediaError, match=r"at most 2\.9 s"):
        sample_frames(video, 2, Bounds(video_seconds=2.9))
    unsaid = make_video(30, rate=10, kind="matroska", muxing={"live": "1"})
    with pytest.raises(MediaError, match=r"at most 2\.5 s"):
        sample_frames(unsaid, 2, Bounds(video_seconds=2.5))
    with pytest.raises(MediaError, match="too many frames"):
        sample_frames(make_video(300, rate=1000), 2, Bounds(video_seconds=1.0))


def test_too_many_pixels_and_bytes_are_refused(make_video: Make) -> None:
    video = make_video(4)
    assert len(sample_frames(video, 1, Bounds(pixels=64 * 64))) == 1
    with pytest.raises(MediaError, match="pixels") as caught:
        sample_frames(video, 1, Bounds(pixels=64 * 64 - 1))
    assert caught.value.value == "64x64"
    assert len(sample_frames(video, 1, Bounds(video_bytes=len(video)))) == 1
    with pytest.raises(MediaError, match="at most"):
        sample_frames(video, 1, Bounds(video_bytes=len(video) - 1))


def test_pixels_are_bounded_where_the_container_lies(make_video: Make) -> None:
    video = make_video(4, options={"bf": "0"}, kind="matroska")
    # PixelWidth and PixelHeight of the track's header: 64 becomes 2.
    lying = video.replace(b"\xb0\x81\x40", b"\xb0\x81\x02").replace(
        b"\xba\x81\x40", b"\xba\x81\x02"
    )
    assert lying != video
    with pytest.raises(MediaError):
        sample_frames(lying, 1, Bounds(pixels=100))


def test_damage_of_every_kind_ends_in_a_media_error(make_video: Make) -> None:
    rng = np.random.default_rng(2)
    videos = [make_video(8), make_video(8, kind="matroska"), make_video(8, kind="avi")]
    decoded = refused = 0
    for k in range(120):
        broken = bytearray(videos[k % 3])
        for at in rng.integers(0, len(broken), 6):
            broken[at] = rng.integers(256)
        try:
            sample_frames(bytes(broken), 2)
            decoded += 1
        except MediaError:
            refused += 1
    assert decoded > 0
    assert refused > 0


def test_files_are_closed(make_video: Make, jpeg: bytes, tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("counts open files in /proc, which this system does not have")
    video = make_video(8)
    (tmp_path / "whole").write_bytes(video)
    (tmp_path / "cut").write_bytes(video[:1000])
    (tmp_path / "whole.jpg").write_bytes(jpeg)
    (tmp_path / "cut.jpg").write_bytes(jpeg[:400])
    before = len(os.listdir("/proc/self/fd"))
    kept: list[MediaError] = []
    for _ in range(5):
        sample_frames(tmp_path / "whole", 2)
        decode_image(tmp_path / "whole.jpg")
        with pytest.raises(MediaError) as caught:
            sample_frames(tmp_path / "cut", 2)
        kept.append(caught.value)
        with pytest.raises(MediaError) as caught:
            decode_image(tmp_path / "cut.jpg")
        kept.append(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before


def test_real_clips(real_data: Path) -> None:
    with (real_data / "videos/manifest.csv").open() as file:
        clips = list(csv.DictReader(file))
    assert len(clips) == 17
    for clip in clips:
        width, height = int(clip["width"]), int(clip["height"])
        scale = min(1.0, 160 / max(width, height))
        frames = sample_frames(real_data / "videos" / clip["file"], 3, max_side=160)
        assert [f.shape for f in frames] == [(round(height * scale), round(width * scale), 3)] * 3
        assert frames[0].std() > 5


@pytest.mark.parametrize("name", ["skv_carphone", "ptv_archery"])
def test_frames_of_real_clips_are_the_ones_of_a_full_decode(real_data: Path, name: str) -> None:
    path = real_data / f"videos/{name}.mp4"
    with av.open(str(path)) as container:
        decoded = [f.to_ndarray(format="rgb24").astype(np.int16) for f in container.decode(video=0)]
    for frame, at in zip(sample_frames(path, 4), middles(len(decoded), 4), strict=True):
        distance = [np.abs(frame - decoded[k]).mean() for k in (at - 1, at, at + 1)]
        assert distance[1] < 2
        assert distance[1] <= min(distance)
