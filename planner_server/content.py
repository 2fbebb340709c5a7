"""What a PlanContent brings: checked here, decoded where a crash is survivable.

Knows no model and no decoder.
"""

from __future__ import annotations

from planner_server.limits import MAX_FRAMES, MAX_TEXT_BYTES, MAX_TITLE_BYTES
from serendip.core import REQUEST_BOUNDS, InvalidRequest, check_length
from serendip.planning.prompt import Upload
from serendip.v1 import planner_pb2


def read_content(request: planner_pb2.PlanContentRequest) -> Upload:
    """The request's content, as encoded.

    Raises:
        InvalidRequest: it breaks a bound that can be seen without decoding.
    """
    if not 1 <= len(request.title.encode()) <= MAX_TITLE_BYTES:
        raise InvalidRequest(
            f"must be 1 to {MAX_TITLE_BYTES:,} bytes",
            field="title",
            value=request.title,
            remedy="Shorten it.",
        )
    if len(request.text.encode()) > MAX_TEXT_BYTES:
        raise InvalidRequest(
            f"at most {MAX_TEXT_BYTES:,} bytes", field="text", remedy="Shorten it."
        )
    check_length(tuple(request.frames), "frames", 0, MAX_FRAMES)
    for at, frame in enumerate(request.frames):
        _check_bytes(frame, f"frames[{at}]", REQUEST_BOUNDS.image_bytes)
    _check_bytes(request.thumbnail, "thumbnail", REQUEST_BOUNDS.image_bytes)
    _check_bytes(request.video, "video", REQUEST_BOUNDS.video_bytes)
    if request.video and request.frames:
        raise InvalidRequest(
            "frames are sampled from it", field="video", remedy="Send frames or a video, not both."
        )
    return Upload(
        title=request.title,
        text=request.text,
        thumbnail=request.thumbnail or None,
        frames=tuple(request.frames),
        video=request.video or None,
    )


def _check_bytes(data: bytes, field: str, most: int) -> None:
    if len(data) > most:
        raise InvalidRequest(
            f"must have at most {most} bytes",
            field=field,
            value=len(data),
            remedy="Make it smaller.",
        )
