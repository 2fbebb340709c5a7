"""Item matrices, clusters and requests for the retriever's bench; all seeded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

COLUMNS = 65  # 64 dimensions and the bias
_ROWS_A_PASS = 1 << 17


@dataclass(frozen=True)
class Request:
    """One user and what is asked for.

    Attributes:
        user: float32[65], its last 1.
        clusters: different leaves, ascending.
        slices: [start, end) of each of them.
    """

    user: Float32
    clusters: tuple[int, ...]
    slices: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class World:
    """Items in equal leaves, in item order.

    Attributes:
        matrix: float32[N, 65].
        start: int64[L + 1], first item of each leaf.
    """

    matrix: Float32
    start: Int64

    @property
    def leaf_of(self) -> Int64:
        """int64[N]."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    def requests(self, count: int, most: int, seed: int) -> list[Request]:
        """Users that ask for 1 to ``most`` leaves each; next to each other if most is above 4, so
        that they are one slice."""
        rng = np.random.default_rng(seed)
        leaves = len(self.start) - 1
        found = []
        for _ in range(count):
            if most > 4:
                first = int(rng.integers(leaves // most)) * most
                clusters = tuple(range(first, first + most))
                slices = ((int(self.start[first]), int(self.start[first + most])),)
            else:
                asked = int(rng.integers(1, most + 1))
                clusters = tuple(sorted(rng.choice(leaves, asked, replace=False).tolist()))
                slices = tuple((int(self.start[c]), int(self.start[c + 1])) for c in clusters)
            found.append(Request(self._user(rng), clusters, slices))
        return found

    def _user(self, rng: np.random.Generator) -> Float32:
        """Noise and the mean of a few items, each of about the same length."""
        items = self.matrix[rng.integers(0, len(self.matrix), 3), :-1].mean(axis=0)
        items *= np.sqrt(len(items)) / max(float(np.linalg.norm(items)), 1e-9)
        user = np.ones(COLUMNS, np.float32)
        user[:-1] = items + rng.standard_normal(COLUMNS - 1, np.float32)
        return user


def world(items: int, leaves: int, *, trained_like: bool = False) -> World:
    """Rows of noise, or rows as training leaves them: see ``make_trained_like``."""
    rng = np.random.default_rng(0)
    matrix = np.empty((items, COLUMNS), np.float32)
    for at in range(0, items, _ROWS_A_PASS):
        rng.standard_normal(out=matrix[at : at + _ROWS_A_PASS], dtype=np.float32)
    start = np.linspace(0, items, leaves + 1).astype(np.int64)
    made = World(matrix, start)
    if trained_like:
        make_trained_like(made)
    return made


def make_trained_like(of: World) -> None:
    """Changes a matrix of noise in place: columns of falling spread (1 / sqrt(1 + j / 8)), a centre
    a leaf and one for 16 leaves, lengths that vary by popularity (log-normal, .4), and a bias
    that goes with them.
    """
    rng = np.random.default_rng(1)
    leaves = len(of.start) - 1
    spread = (1 / np.sqrt(1 + np.arange(COLUMNS - 1) / 8)).astype(np.float32)
    above = rng.standard_normal((-(-leaves // 16), COLUMNS - 1), np.float32)
    for leaf in range(leaves):
        rows = of.matrix[of.start[leaf] : of.start[leaf + 1]]
        centre = above[leaf // 16] + 0.7 * rng.standard_normal(COLUMNS - 1, np.float32)
        popular = rng.standard_normal(len(rows), np.float32)
        rows[:, :-1] *= np.float32(0.7)
        rows[:, :-1] += centre
        rows[:, :-1] *= spread * np.exp(0.4 * popular)[:, None]
        rows[:, -1] = popular
