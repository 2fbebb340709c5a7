"""What the tree is made from: the catalogue's items, and their vectors by the configured way.

Knows no cluster.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import csr_matrix

from serendip.catalog.items import read_items_table
from serendip.config import Config, TreeConfig
from serendip.core import InvalidData, InvalidRequest
from serendip.storage import hash_file
from serendip.tree.embed import Floats, TextModel, check_vectors, normalise_vectors

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """The catalogue of a data folder. N items, in the order of the file.

    Attributes:
        item_ids, titles: N each.
        texts: N; title and text, what words are counted in and an encoder reads.
        column: float32[N, d] ready-made vectors, of any length; None unless configured.
    """

    config: TreeConfig
    seed: int
    item_ids: list[str]
    titles: list[str]
    texts: list[str]
    column: Floats | None

    @classmethod
    def read(cls, config: Config) -> Source:
        """Reads the catalogue. Raises InvalidData."""
        ready = config.tree.vectors == "column"
        items = read_items_table(config.data_path, ("title", "text", *(["vector"] * ready)))
        titles, texts = (items.column(name).to_pylist() for name in ("title", "text"))
        if ready and "vector" not in items.column_names:
            raise InvalidData(
                "no such column",
                field="items.parquet:vector",
                remedy="Add it, or set tree.vectors = 'text'.",
            )
        return cls(
            config=config.tree,
            seed=config.seed,
            item_ids=items.column("item_id").to_pylist(),
            titles=titles,
            texts=[f"{title} {text}" for title, text in zip(titles, texts, strict=True)],
            column=_as_matrix(items.column("vector")) if ready else None,
        )

    def content(self) -> npt.NDArray[np.uint64]:
        """uint64[N]: a hash of what each item's vector is made from."""
        rows = self.texts if self.column is None else self.column
        made = (r.encode() if isinstance(r, str) else r.tobytes() for r in rows)
        digests = b"".join(hashlib.blake2b(m, digest_size=8).digest() for m in made)
        return np.frombuffer(digests, "<u8").astype(np.uint64)

    def fit(self, counts: csr_matrix, words: list[str]) -> tuple[Floats, TextModel | None]:
        """(float32[N, d] unit vectors, the model that makes further ones from text).

        Where vectors come from text, that of an item without any of the words is zero.

        Args:
            counts, words: word counts int[N, V] of the texts.

        Raises:
            InvalidData: a ready-made or an encoder's vector is zero or not finite.
            InvalidRequest: the encoder cannot be loaded.
        """
        if self.config.vectors == "text":
            model, vectors = TextModel.fit(counts, words, self.config.dimensions, self.seed)
            return vectors, model
        return self.embed(np.arange(len(self.item_ids)), None), None

    def embed(self, rows: Ints, model: TextModel | None) -> Floats:
        """float32[n, d]: vectors of some items, by the model that ``fit`` gave; raises as it."""
        known = (rows.tolist(), self.item_ids)
        if self.column is not None:
            vectors = self.column[rows]
            check_vectors(vectors, *known, "items.parquet:vector", "Fill it, or drop the item.")
            return normalise_vectors(vectors)
        texts = [self.texts[i] for i in rows]
        if model is not None:
            return model.embed(texts)
        from serendip.tree.sentence import SentenceEncoder  # loads torch

        encoder = SentenceEncoder(Path(self.config.encoder))
        vectors = encoder.embed(texts, self.config.encoder_batch)
        check_vectors(vectors, *known, "tree.encoder", "Give the item a title or a text.")
        return vectors


def hash_sources(config: TreeConfig) -> dict[str, str]:
    """Inputs beside the catalogue, by 12 hexadecimal digits of their content.

    Raises:
        InvalidRequest: a folder or file that the settings name is not there.
    """
    found = {}
    if config.vectors == "encoder":
        found["encoder"] = hash_folder(Path(config.encoder), "tree.encoder")
    if config.descriptions == "llm":
        found["llm"] = hash_folder(Path(config.llm), "tree.llm")
    if config.descriptions == "table":
        try:
            found["descriptions"] = hash_file(Path(config.descriptions_path))[:12]
        except OSError as e:
            raise InvalidRequest(
                f"cannot be read ({e.strerror})",
                field="tree.descriptions_path",
                value=config.descriptions_path,
                remedy="Name a .parquet or .csv file.",
            ) from e
    return found


def hash_folder(folder: Path, field: str) -> str:
    """12 hexadecimal digits of the weights and settings of a model's folder.

    Raises:
        InvalidRequest: there is no such folder.
    """
    if not folder.is_dir():
        raise InvalidRequest("no such folder", field=field, value=str(folder))
    kinds = {".safetensors", ".json", ".jinja", ".model", ".txt"}
    paths = sorted(p for p in folder.rglob("*") if p.suffix in kinds and p.is_file())
    lines = [f"{p.relative_to(folder)} {hash_file(p)}" for p in paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _as_matrix(column: pa.ChunkedArray) -> Floats:
    """float32[N, d] of a list column whose rows are all of one length."""
    values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float32).reshape(len(column), -1)
