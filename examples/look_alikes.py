"""How well look-alikes are told in a catalogue: what is found of re-encoded thumbnails, and what is
found though nothing was repeated. Usage: python examples/look_alikes.py DATA_DIR [ITEMS]

The second is an upper bound of the false positives: a catalogue may have true duplicates.
"""

from __future__ import annotations

import io
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from serendip.catalog import look_alikes as la
from serendip.catalog.items import read_items
from serendip.catalog.media import decode_image
from serendip.core import MediaError

BITS = (0, 3, 5, 8)


def again(picture: la.Pixels, quality: int, scale: float) -> la.Signatures:
    height, width = (max(1, round(side * scale)) for side in picture.shape[:2])
    file = io.BytesIO()
    Image.fromarray(picture).resize((width, height)).save(file, "JPEG", quality=quality)
    return la.sign(file.getvalue())


def share(these: la.Signatures, those: la.Signatures, bits: int) -> float:
    found = {row for rows, _ in la.alike(these, those, bits) for row in rows.tolist()}
    return len(found) / len(these)


def main() -> None:
    folder, most = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3000
    pictures, parts, ids = [], [], []
    for item in islice((i for i in read_items(folder) if i.thumbnail is not None), most):
        try:
            pictures.append(decode_image(item.thumbnail))
            parts.append(la.sign(item.thumbnail))
            ids.append(item.item_id)
        except MediaError:
            continue
    print(f"{len(parts)} thumbnails; at most {', '.join(map(str, BITS))} bits apart")
    print("found of one encoded again")
    for name, quality, scale in (
        ("quality 75", 75, 1),
        ("quality 50", 50, 1),
        ("half size", 75, 0.5),
    ):
        made = [again(picture, quality, scale) for picture in pictures]
        found = [
            np.mean([share(m, p, bits) for m, p in zip(made, parts, strict=True)]) for bits in BITS
        ]
        print(f"  {name:27}{', '.join(f'{x:.3f}' for x in found)}")
    held = np.random.default_rng(0).random(len(ids)) < 0.15
    kept, out = (
        la.Signatures.joined([p for p, h in zip(parts, held, strict=True) if h == is_held])
        for is_held in (False, True)
    )
    names = [{i for i, h in zip(ids, held, strict=True) if h == is_held} for is_held in (0, 1)]
    whole = [len(la.look_alikes(folder, *names, bits)) / len(names[0]) for bits in BITS]
    print("left out, where 15% are held out")
    print(f"  by thumbnail and video     {', '.join(f'{lost:.4f}' for lost in whole)}")
    for name, bound in (("thumbnail", la._SAME_COLOURS), ("thumbnail's dHash", 256.0)):
        la._SAME_COLOURS = bound
        lost = [share(kept, out, bits) for bits in BITS]
        print(f"  by {name + ' alone':24}{', '.join(f'{x:.4f}' for x in lost)}")


if __name__ == "__main__":
    main()
