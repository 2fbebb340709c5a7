"""Simulated item vectors and traffic for the benches of the tree."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

THEMES = 64  # and as many parts of each


def vectors_and_traffic(
    n: int, d: int, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """(float32[n, d] unit vectors around themes of Zipf sizes, float64[n] Zipf(1) traffic)."""
    rng = np.random.default_rng(seed)
    themes = rng.standard_normal((THEMES, 1, d)) + 0.7 * rng.standard_normal((THEMES, THEMES, d))
    share = 1 / np.arange(1, THEMES**2 + 1)
    of = rng.permutation(THEMES**2)[rng.choice(THEMES**2, n, p=share / share.sum())]
    x = themes.reshape(-1, d).astype(np.float32)[of]
    x += np.float32(0.8) * rng.standard_normal((n, d), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, rng.permutation(1 / np.arange(1, n + 1))
