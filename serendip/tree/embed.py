"""Item vectors: what the tree clusters. From text by TF-IDF and SVD, or ready-made.

Knows no cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import normalize

from serendip.core import CorruptArtifact, InvalidData
from serendip.tree.words import count_known_words

Floats = npt.NDArray[np.float32]

FILE = "text_model.npz"


@dataclass(frozen=True)
class TextModel:
    """What makes a vector of a text: sublinear TF-IDF over V words, then r components.

    Attributes:
        words: the V words, in the order of the columns.
        idf: float64[V].
        components: float32[r, V]; with none, every text has the same vector, (1,).
    """

    words: tuple[str, ...]
    idf: npt.NDArray[np.float64]
    components: Floats

    @classmethod
    def fit(
        cls, counts: csr_matrix, words: Sequence[str], dimensions: int, seed: int
    ) -> tuple[TextModel, Floats]:
        """The model of word counts int[N, V], and its vectors of them: float32[N, r <= dimensions].

        A vector has unit length; that of a text without any of the words is zero.
        """
        transform = TfidfTransformer(sublinear_tf=True)
        weights = transform.fit_transform(counts)
        rank = min(dimensions, min(weights.shape) - 1)
        if rank < 1:
            model = cls(tuple(words), transform.idf_, np.empty((0, len(words)), np.float32))
            return model, np.ones((weights.shape[0], 1), np.float32)
        svd = TruncatedSVD(rank, random_state=seed)
        vectors = normalise_vectors(svd.fit_transform(weights))
        return cls(tuple(words), transform.idf_, svd.components_.astype(np.float32)), vectors

    def embed(self, texts: Sequence[str]) -> Floats:
        """float32[N, r]: vectors of further texts, of unit length or zero."""
        if not len(self.components):
            return np.ones((len(texts), 1), np.float32)
        weights = count_known_words(texts, self.words).astype(np.float64)
        weights.data = np.log(weights.data) + 1
        weights = normalize(weights.multiply(self.idf).tocsr())
        return normalise_vectors(weights @ self.components.T)

    def save(self, folder: Path) -> None:
        """Writes text_model.npz into a folder."""
        words = np.frombuffer("\n".join(self.words).encode(), np.uint8)
        np.savez(folder / FILE, words=words, idf=self.idf, components=self.components)

    @classmethod
    def load(cls, path: Path) -> TextModel:
        """Reads what ``save`` wrote. Raises CorruptArtifact."""
        try:
            with np.load(path, allow_pickle=False) as file:
                words = tuple(file["words"].tobytes().decode().split("\n"))
                model = cls(words, file["idf"], file["components"])
        except (ValueError, KeyError, OSError) as e:
            raise CorruptArtifact(f"is no text model ({e})", field=str(path)) from e
        if model.idf.shape != (len(words),) or model.components.shape[1:] != (len(words),):
            raise CorruptArtifact("words and weights disagree", field=str(path))
        return model


def normalise_vectors(vectors: npt.NDArray[np.floating]) -> Floats:
    """Vectors float[N, d] to unit length; a zero vector stays zero."""
    return np.asarray(normalize(vectors), np.float32)


def check_vectors(
    vectors: Floats, rows: Sequence[int], item_ids: Sequence[str], source: str, remedy: str
) -> None:
    """Refuses a vector that no direction can be read from.

    Args:
        vectors: float32[n, d].
        rows: n rows of the catalogue that the vectors are of.
        item_ids: the catalogue's.
        source: where they come from, as the user knows it.

    Raises:
        InvalidData: a vector holds NaN or infinity, or is zero; names the first such item.
    """
    length = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if len(bad):
        row = int(rows[bad[0]])
        what = "is zero" if length[bad[0]] == 0 else "is not finite"
        raise InvalidData(
            f"the vector of item {item_ids[row]} {what} ({len(bad)} such in all)",
            field=source,
            row=row,
            remedy=remedy,
        )
