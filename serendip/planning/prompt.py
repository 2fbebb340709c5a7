"""The prompt: one builder for training, bulk and live, and the form of the answer.

A style is a template in a readable file. Its instruction comes before the images, so that a batch
shares its prefix. The model answers

    Topic: <the description of the item's own cluster>
    Look: <what it sees>
    Next: <the description of the planned cluster>

where the lines before the last are the reasoning of a style that has one. The topic of an item of
the tree is known, and is given to the planner; of any other the model writes its own reading. A
style without reasoning is direct: its prompt opens the answer itself. Knows no tokenizer and no
model: the checkpoint's own chat template makes the text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from serendip.catalog.media import decode_image, sample_frames
from serendip.core import REQUEST_BOUNDS, InvalidRequest, Item, MediaError
from serendip.planning.style import ANSWER, OPENED, Style, slots_of

Image = npt.NDArray[np.uint8]  # [H, W, 3], RGB

_MAX_SIDE = 896  # pixels; no vision tower in use reads more


@dataclass(frozen=True)
class Content:
    """An item as the model gets it: its words and its decoded pictures.

    Attributes:
        cover: the thumbnail, or None.
        frames: frames in the order of the video.
        cluster: the description of its own cluster; "" where that is not known or not shown.
    """

    title: str
    text: str = ""
    cover: Image | None = None
    frames: tuple[Image, ...] = ()
    cluster: str = ""

    @property
    def images(self) -> tuple[Image, ...]:
        """Thumbnail first, then the frames."""
        return (() if self.cover is None else (self.cover,)) + self.frames

    def thinned(self, frames: int) -> Content:
        """The same with at most that many frames, evenly spaced."""
        if len(self.frames) <= frames:
            return self
        at = np.linspace(0, len(self.frames), frames, endpoint=False).astype(int)
        return replace(self, frames=tuple(self.frames[i] for i in at))


@dataclass(frozen=True)
class Upload:
    """An item as a request brings it, encoded; by whom is not known.

    Attributes:
        frames: images in the order of the video.
        video: what frames are sampled from; None with frames.
    """

    title: str
    text: str = ""
    thumbnail: bytes | None = None
    frames: tuple[bytes, ...] = ()
    video: bytes | None = None

    @cached_property
    def size(self) -> int:
        """Bytes of its media."""
        return sum(map(len, (self.thumbnail or b"", *self.frames, self.video or b"")))

    @cached_property
    def digest(self) -> str:
        """sha256 of all that it is."""
        whole = hashlib.sha256(repr((self.title, self.text)).encode())
        for part in (self.thumbnail, *self.frames, None, self.video):
            whole.update(b"-" if part is None else b"%d:" % len(part))
            whole.update(part or b"")
        return whole.hexdigest()

    @property
    def field(self) -> str:
        """What is to blame where it is not known which part is."""
        if self.video is not None:
            return "video"
        return "frames" if self.frames else "thumbnail"


Source = Item | Upload


class Message(TypedDict):
    """A turn of a chat: parts are {"type": "image"} or {"type": "text", "text": ...}."""

    role: str
    content: list[dict[str, str]]


@dataclass(frozen=True)
class Prompt:
    """What is put to the model: chat messages whose image slots stand for ``images``.

    Attributes:
        opening: what the model's turn begins with.
    """

    messages: tuple[Message, ...]
    images: tuple[Image, ...]
    opening: str = ""


def load_content(source: Source, style: Style, frames: int) -> Content:
    """Decodes what a style shows of an item, or of what a request brings.

    Raises:
        MediaError: the style looks, and there is no picture that can be decoded.
    """
    if not style.looks:
        return Content(source.title, source.text)
    if isinstance(source, Upload):
        return _load_upload(source, style, frames)
    item = source
    content = Content(
        title=item.title,
        text=item.text,
        cover=None
        if item.thumbnail is None or not style.thumbnail
        else decode_image(item.thumbnail, max_side=_MAX_SIDE),
        frames=()
        if item.video is None or not style.frames or not frames
        else tuple(sample_frames(item.video, frames, max_side=_MAX_SIDE)),
    )
    if not content.images:
        raise MediaError(
            f"has {_missing(style)}",
            field=item.item_id,
            remedy=f"Add one, or plan with another style than {style.name}.",
        )
    return content


def _missing(style: Style) -> str:
    if style.thumbnail and style.frames:
        return "neither thumbnail nor video"
    return "no thumbnail" if style.thumbnail else "no video"


def load_inside(root: Path, source: Source, style: Style, frames: int) -> Content:
    """As ``load_content``; an item's files must lie inside a folder at this moment.

    The catalogue was read some time ago: a name that was a file then may be a link now.

    Raises:
        MediaError: as load_content, or a file lies elsewhere.
    """
    if isinstance(source, Item) and style.looks:
        for path in (source.thumbnail, source.video):
            if isinstance(path, Path) and not path.resolve().is_relative_to(root):
                raise MediaError(
                    "leads out of the data folder",
                    field=source.item_id,
                    value=str(path),
                    remedy="Put the file itself there.",
                )
    return load_content(source, style, frames)


def _load_upload(upload: Upload, style: Style, frames: int) -> Content:
    """Decodes what a request brings, within the bounds of requests; errors name its fields.

    What the style does not show is decoded as well, so that what is broken is told of, and left
    out of the prompt.
    """
    thumbnail, video = upload.thumbnail, upload.video
    shown = tuple(_picture(data, f"frames[{at}]") for at, data in enumerate(upload.frames))
    if video is not None and style.frames:
        shown = tuple(sample_frames(video, frames, REQUEST_BOUNDS, _MAX_SIDE))
    cover = None if thumbnail is None else _picture(thumbnail, "thumbnail")
    return Content(upload.title, upload.text, cover, shown).thinned(frames)


def _picture(data: bytes, field: str) -> Image:
    try:
        return decode_image(data, REQUEST_BOUNDS, _MAX_SIDE)
    except MediaError as e:
        raise MediaError(e.message, field=field, value=e.value, remedy=e.remedy) from e


def check_pictures(content: Content, style: Style) -> None:
    """Raises InvalidRequest if the style looks and there is no image."""
    if style.looks and not _pictures(content, style):
        field = "thumbnail" if style.thumbnail else "frames"
        raise InvalidRequest(
            "needs at least one image",
            field=field,
            remedy=f"Send {'a thumbnail or frames' if style.frames else 'one'}: "
            f"the prompt style is {style.name}.",
        )


def _pictures(content: Content, style: Style) -> tuple[Image, ...]:
    """Those that the style shows, in the order of its slots."""
    shown: list[Image] = []
    for line in style.asks:
        shown += _pictures_of(content, line)
    return tuple(shown)


def _pictures_of(content: Content, line: str) -> tuple[Image, ...]:
    if line == "{thumbnail}":
        return () if content.cover is None else (content.cover,)
    return content.frames if line == "{frames}" else ()


def write_words(content: Content, text_chars: int) -> str:
    """Title and text as pretraining says them; at most ``text_chars`` characters of the text."""
    words = f"Title: {content.title}"
    if content.text and text_chars:
        words += f"\nText: {content.text[:text_chars]}"
    return words


def build_prompt(content: Content, style: Style, text_chars: int) -> Prompt:
    """The prompt of an item.

    Args:
        text_chars: at most this much of the item's text is shown.

    Raises:
        InvalidRequest: the style shows what the content does not have.
    """
    check_pictures(content, style)
    values = {
        "title": content.title,
        "text": content.text[:text_chars],
        "cluster": content.cluster,
    }
    parts: list[dict[str, str]] = []
    words: list[str] = []

    def flush() -> None:
        if words:
            parts.append({"type": "text", "text": "\n".join(words)})
            words.clear()

    for line in style.asks:
        if line in ("{thumbnail}", "{frames}"):
            flush()
            parts += [{"type": "image"}] * len(_pictures_of(content, line))
        elif filled := _fill(line, values):
            words.append(filled)
    flush()
    images = _pictures(content, style)
    if not images and not any(values[slot] for slot in style.slots):
        raise InvalidRequest(
            f"is not known, and the prompt style {style.name} shows nothing else",
            field="cluster" if "cluster" in style.slots else "title",
            remedy="Plan an item of the tree." if "cluster" in style.slots else "Add one.",
        )
    return Prompt(
        ({"role": "user", "content": parts},),
        images,
        "" if style.reasons else OPENED,
    )


def _fill(line: str, values: Mapping[str, str]) -> str:
    """The line with its slots filled; "" where all of them are empty."""
    slots = slots_of(line)
    if slots and not any(values[slot] for slot in slots):
        return ""
    return line.format_map(values)


def write_reasoning(style: Style, own: str, look: str) -> str:
    """The reasoning of a training row; a line of which nothing is known is left out."""
    values = {"topic": own, "look": " ".join(look.split())}
    return "\n".join(filter(None, (_fill(line, values) for line in style.thinks)))


def write_known(style: Style, own: str) -> str:
    """What the model's turn begins with where the own cluster is known; "" where it is not."""
    return "\n".join(line.format_map({"topic": own}) for line in style.known) if own else ""


def write_answer(style: Style, own: str, look: str, description: str) -> str:
    """The model's whole turn after the prompt's opening, without its end."""
    if not style.reasons:
        return f" {description}"
    return f"{write_reasoning(style, own, look)}{ANSWER} {description}"


def read_answer(style: Style, text: str) -> tuple[str, str]:
    """(reasoning, description) of a model's turn; no answer span gives an empty description."""
    if not style.reasons:
        return "", text.strip()
    reasoning, found, description = text.partition(ANSWER)
    return reasoning.strip(), description.strip() if found else ""
