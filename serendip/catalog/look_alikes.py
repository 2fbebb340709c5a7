"""Which items show the same: near duplicates among their media.

A picture has two small signatures. A 64-bit difference hash (dHash: whether each cell of a grid is
darker than its right neighbour) tells it by its shapes. Scenes as plain as the synthetic world's
share shapes, so the mean colours of a coarser grid must agree as well. Both outlive another size
and another JPEG quality; neither outlives a crop, a mirror image, another light or words laid over
it. Knows no pair and no model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from serendip.catalog.items import read_items
from serendip.catalog.media import Pixels, decode_image, sample_frames
from serendip.core import Item, MediaError
from serendip.progress import progress
from serendip.storage import hash_file

_HASH_SIDE = 8  # cells a side, 64 bits in all
_DARKER = 2  # levels of 256: or what tells a flat stretch would be its noise
_COLOUR_SIDE = 4  # cells a side, 48 mean colours in all
# Mean difference, in levels of 256, up to which the colours agree: a little more than what half the
# size and JPEG at quality 50 make of one picture (examples/look_alikes.py measures it).
_SAME_COLOURS = 4.0
_DECODED_SIDE = 64  # pixels: JPEG decodes to an eighth of its size for an eighth of the work
_PAIRS_AT_ONCE = 1 << 19
_FRAMES = 3  # of a video, each of which may be what another shows


@dataclass(frozen=True)
class Signatures:
    """Signatures of N pictures.

    Attributes:
        bits: float32[N, 64], each 1 or -1: two rows differ in (64 - their product) / 2 bits.
        colours: uint8[N, 48].
    """

    bits: npt.NDArray[np.float32]
    colours: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.bits)

    @classmethod
    def of(cls, pictures: Sequence[Pixels]) -> Signatures:
        """Those of N decoded pictures of any size, uint8[H, W, 3]."""
        rows = [_sign(p) for p in pictures]
        bits = np.array([b for b, _ in rows], np.float32).reshape(-1, _HASH_SIDE**2)
        colours = np.array([c for _, c in rows], np.uint8).reshape(-1, 3 * _COLOUR_SIDE**2)
        return cls(bits, colours)

    @classmethod
    def joined(cls, parts: Sequence[Signatures]) -> Signatures:
        """Those of several, in order."""
        parts = [cls.of([]), *parts]
        bits, colours = [p.bits for p in parts], [p.colours for p in parts]
        return cls(np.concatenate(bits), np.concatenate(colours))

    def at(self, rows: slice | npt.NDArray[np.int64]) -> Signatures:
        """Some of the rows."""
        return Signatures(self.bits[rows], self.colours[rows])


def _sign(picture: Pixels) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint8]]:
    image = Image.fromarray(picture)
    grey = image.convert("L").resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX)
    cells = np.asarray(grey, np.int16)
    bits = np.where(cells[:, 1:] > cells[:, :-1] + _DARKER, 1, -1).astype(np.int8)
    colours = image.resize((_COLOUR_SIDE, _COLOUR_SIDE), Image.Resampling.BOX)
    return bits.ravel(), np.asarray(colours).ravel()


def sign(source: bytes | Path) -> Signatures:
    """Signatures of one encoded picture. Raises MediaError."""
    return Signatures.of([decode_image(source, max_side=_DECODED_SIDE)])


def alike(
    these: Signatures, those: Signatures, most_bits: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """The pairs of N and M pictures that are alike, block by block: rows of the one, of the other.

    Alike: at most ``most_bits`` of 64 bits differ, and the mean colours agree. All N x M pairs are
    compared in blocks, so that memory stays small: a matrix product, and colours where it says so.
    """
    for at in range(0, len(those), _PAIRS_AT_ONCE):
        others = those.at(slice(at, at + _PAIRS_AT_ONCE))
        rows = max(1, _PAIRS_AT_ONCE // len(others))
        for start in range(0, len(these), rows):
            block = these.at(slice(start, start + rows))
            mine, other = (block.bits @ others.bits.T >= 64 - 2 * most_bits).nonzero()
            apart = np.abs(block.colours[mine].astype(np.int16) - others.colours[other])
            same = apart.mean(axis=1) <= _SAME_COLOURS
            if same.any():
                yield start + mine[same], at + other[same]


def look_alikes(
    data_dir: Path, these: Collection[str], those: Collection[str], most_bits: int
) -> set[str]:
    """Which of some items show what any of others shows.

    Their thumbnails are alike and, where both have a video, so is one of its frames: a series may
    have one thumbnail, and any catalogue has pictures that say nothing. Or their videos are the
    same bytes. Without a thumbnail the middle of the video stands in. What cannot be decoded shows
    nothing.

    Args:
        these, those: item IDs, none in both.
        most_bits: of 64 that may differ in a picture.
    """
    if not these or not those:
        return set()
    mine, other = _Seen(), _Seen()
    with progress("near duplicates", len(these) + len(those)) as tick:
        for item in read_items(data_dir):
            if item.item_id in these or item.item_id in those:
                tick()
                (mine if item.item_id in these else other).add(item)
    found = mine.same_files(other)
    for rows, others in alike(mine.covers(), other.covers(), most_bits):
        at, starts = np.unique(rows, return_index=True)
        for row, near in zip(at.tolist(), np.split(others, starts[1:]), strict=True):
            if mine.items[row].item_id not in found and _agree(mine, row, other, near, most_bits):
                found.add(mine.items[row].item_id)
    return found


def _agree(
    mine: _Seen, row: int, other: _Seen, near: npt.NDArray[np.int64], most_bits: int
) -> bool:
    """Whether the videos of an item and of one whose thumbnail is alike say the same."""
    if mine.items[row].video is None or any(other.items[b].video is None for b in near):
        return True
    theirs = Signatures.joined([other.frames(b) for b in near.tolist()])
    return any(True for _ in alike(mine.frames(row), theirs, most_bits))


class _Seen:
    """Items as they come, with what is known of their media.

    Attributes:
        items: those with a picture, without its bytes.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._covers: list[Signatures] = []
        self._frames: dict[int, Signatures] = {}
        self._videos: defaultdict[int, list[tuple[str, Path]]] = defaultdict(list)  # by size

    def add(self, item: Item) -> None:
        if item.video is not None and item.video.is_file():
            self._videos[item.video.stat().st_size].append((item.item_id, item.video))
        try:
            if item.thumbnail is not None:
                cover = sign(item.thumbnail)
            elif item.video is not None:
                cover = Signatures.of(sample_frames(item.video, 1, max_side=_DECODED_SIDE))
            else:
                return
        except MediaError:
            return
        self.items.append(replace(item, thumbnail=None))
        self._covers.append(cover)

    def covers(self) -> Signatures:
        """Of ``items``, in order."""
        return Signatures.joined(self._covers)

    def frames(self, row: int) -> Signatures:
        """Of the video of one of ``items``: none if it cannot be decoded."""
        if row not in self._frames:
            video = self.items[row].video
            try:
                made = (
                    [] if video is None else sample_frames(video, _FRAMES, max_side=_DECODED_SIDE)
                )
            except MediaError:
                made = []
            self._frames[row] = Signatures.of(made)
        return self._frames[row]

    def same_files(self, other: _Seen) -> set[str]:
        """Items whose video is one of the other's; only files of equal size are read."""
        found = set()
        for size in self._videos.keys() & other._videos.keys():
            theirs = {hash_file(video) for _, video in other._videos[size]}
            found |= {i for i, video in self._videos[size] if hash_file(video) in theirs}
        return found
