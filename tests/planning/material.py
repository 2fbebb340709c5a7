"""What the planning tests describe and show."""

import numpy as np

DESCRIPTIONS = [
    "bread: rye", "bread: rye and oats", "bread: cake", "bike: hill", "bike: hill and mud",
    "bike: track", "music: cello", "music: synth and vinyl", "music: synth", "sea", "sea: kayak",
]  # fmt: skip
NODES = range(100, 111)  # of the trie of them: "bread: rye" is 100, and so on
PREFIXES = [(100, 101), (103, 104), (108, 107), (109, 110)]  # the first begins the second


def picture(seed):
    return np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)


def after(opening, tokens, within):
    """What follows the first opening, which must end within some tokens; None if it does not."""
    for end in range(len(opening), min(within, len(tokens)) + 1):
        if tokens[end - len(opening) : end] == opening:
            return tokens[end:]
    return None
