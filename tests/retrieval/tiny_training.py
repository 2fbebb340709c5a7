"""Logs that a model can learn in seconds, or cannot learn at all; run as a script, it trains."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from serendip.config import RetrieverConfig
from serendip.retrieval.sequences import Sequences

TINY = RetrieverConfig(
    dimensions=16, blocks=1, heads=2, max_history=6, epochs=2, batch_size=16, threads=1
)
# Long enough that a kill comes between two epochs.
LONG = TINY.model_copy(update={"epochs": 8, "dropout": 0.3, "batch_size": 64})


def noise(items: int, users: int, events: int) -> Sequences:
    """Items drawn at random: nothing to learn."""
    rng = np.random.default_rng(0)
    item = rng.integers(0, items, users * events)
    return Sequences.in_given_order(np.split(item, users))


def tour(items: int, users: int, events: int) -> Sequences:
    """Every user goes round the same tour of all items: the next item is certain."""
    order = np.random.default_rng(7).permutation(items)
    return Sequences.in_given_order(
        [order[(u * 13 + np.arange(events)) % items] for u in range(users)]
    )


if __name__ == "__main__":
    from serendip.retrieval.fitting import fit

    fit(noise(200, 200, 15), 200, LONG, 0, Path(sys.argv[1]))
