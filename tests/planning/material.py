"""What the planning tests describe and show."""

import numpy as np

DESCRIPTIONS = [
    "bread: rye", "bread: rye and oats", "bread: cake", "bike: hill", "bike: hill and mud",
    "bike: track", "music: cello", "music: synth and vinyl", "music: synth", "sea", "sea: kayak",
]  # fmt: skip


def picture(seed):
    return np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
