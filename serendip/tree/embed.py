"""Item vectors: what the tree clusters. From text by TF-IDF and SVD, or ready-made.

Knows no cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize

from serendip.core import InvalidData

_WORD = r"(?u)\b[^\W\d_]{2,}\b"  # letters: a year tells no interest

Floats = npt.NDArray[np.float32]


def count_words(texts: Sequence[str], min_df: int, max_df: float) -> tuple[csr_matrix, list[str]]:
    """Word counts int[N, V] and the V words; English stop words are left out.

    Args:
        min_df: a word must occur in this many texts.
        max_df: and in at most this share of them.

    Raises:
        InvalidData: no word remains.
    """
    vectorizer = CountVectorizer(
        min_df=min_df, max_df=max_df, stop_words="english", token_pattern=_WORD
    )
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError as e:
        raise InvalidData(
            f"no words to describe clusters by ({e})",
            field="items.parquet:title,text",
            remedy="Clusters are named by words: lower tree.min_df, or add to title or text.",
        ) from e
    return counts, vectorizer.get_feature_names_out().tolist()


def embed_counts(counts: csr_matrix, dimensions: int, seed: int) -> Floats:
    """float32[N, <= dimensions] unit vectors: sublinear TF-IDF, then truncated SVD."""
    weights = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    rank = min(dimensions, min(weights.shape) - 1)
    if rank < 1:
        return np.ones((weights.shape[0], 1), np.float32)
    reduced = TruncatedSVD(rank, random_state=seed).fit_transform(weights)
    return np.asarray(normalize(reduced), np.float32)


def normalise_vectors(vectors: Floats) -> Floats:
    """Ready-made vectors float[N, d] to unit length; a zero vector stays zero."""
    return np.asarray(normalize(vectors), np.float32)
