"""Opens a retriever artefact, and says which file is wrong where one is.

One pass over the matrix serves all that is asked of it: that every number is finite, and that the
golden users score it as they did when it was exported. Knows no query.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from serendip.artifacts import Artifact
from serendip.core import CorruptArtifact, Versions
from serendip.retrieval import item_ids
from serendip.retrieval.attributes import Attributes
from serendip.retrieval.codes import CODES, Codes
from serendip.retrieval.compiled import has_numba
from serendip.retrieval.encoder import UserEncoder
from serendip.retrieval.item_ids import ItemIds
from serendip.tree.cluster_tree import Nodes, leaf_starts, read_nodes

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

MATRIX, SATISFACTION, GOLDEN = "items.npy", "satisfaction.npy", "golden.npz"
NODES, ORDER, ATTRIBUTES = "nodes.parquet", "item_order.parquet", "attributes.parquet"
GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
# What ``open_files`` reads; the weights for training on are not among them.
FILES = (MATRIX, SATISFACTION, GOLDEN, NODES, ORDER, ATTRIBUTES, GRAPH, WEIGHTS, *item_ids.FILES)

TOLERANCE = 1e-4
_ROWS_A_BLOCK = 1 << 16


@dataclass(frozen=True)
class Opened:
    """The files of a retriever artefact. N items, L leaves.

    Attributes:
        leaf_start: int64[L + 1], first item of each leaf.
        matrix: float32[N, d], memory-mapped.
        satisfaction: float32[N], memory-mapped.
        prior: mean satisfaction of the log.
        codes: of the matrix, where it has them and they can be used.
    """

    versions: Versions
    nodes: Nodes
    ids: ItemIds
    leaf_start: Int64
    matrix: Float32
    satisfaction: Float32
    attributes: Attributes
    encoder: UserEncoder
    max_history: int
    prior: float
    codes: Codes | None


def open_files(artifact: Artifact) -> Opened:
    """Opens an artefact of kind ``retriever`` and compares it with its golden outputs.

    Raises:
        CorruptArtifact: naming the file: it cannot be read, does not fit the others, holds a number
            that is not finite, or the golden outputs differ by more than 1e-4.
    """
    name = f"retriever/{artifact.version}"
    with _reading(f"{name}/manifest.json"):
        versions = Versions(
            tree_version=artifact.tree_version,
            retriever_version=artifact.version,
            order_version=str(artifact.facts["order_version"]),
        )
        max_history = int(artifact.facts["max_history"])
        prior = float(artifact.facts["prior_satisfaction"])
    with _reading(f"{name}/{NODES}"):
        nodes = read_nodes(artifact.file(NODES), artifact.tree_version)
    with _reading(f"{name}/{ORDER}"):
        leaf = pq.read_table(artifact.file(ORDER), columns=["leaf"]).column("leaf").to_numpy()
        leaf_start = leaf_starts(leaf, nodes.leaf_count, ORDER)
        n = len(leaf)
    arrays = {}
    for file in (*item_ids.FILES, MATRIX, SATISFACTION):
        with _reading(f"{name}/{file}"):
            arrays[file] = _mapped(artifact.file(file))
    for file, dtype, shape in (
        (item_ids.TEXT, np.uint8, (-1,)),
        (item_ids.START, np.int64, (n + 1,)),
        (item_ids.TABLE, np.int32, (-1,)),
        (MATRIX, np.float32, (n, -1)),
        (SATISFACTION, np.float32, (n,)),
    ):
        _check_array(arrays[file], np.dtype(dtype), shape, f"{name}/{file}")
    with _reading(f"{name}/{item_ids.TABLE}"):
        ids = ItemIds(*(arrays[file] for file in item_ids.FILES))
        ids.check()
    with _reading(f"{name}/{ATTRIBUTES}"):
        attributes = Attributes.open(artifact.file(ATTRIBUTES))
        attributes.check_length(n)
    matrix, satisfaction = arrays[MATRIX], arrays[SATISFACTION]
    if not np.isfinite(satisfaction).all():
        raise _corrupt(f"{name}/{SATISFACTION}", "holds a number that is not finite")
    artifact.file(WEIGHTS)
    encoder = UserEncoder.open(artifact.file(GRAPH))
    if encoder.width != matrix.shape[1]:
        raise _corrupt(
            f"{name}/{MATRIX}",
            f"has rows of {matrix.shape[1]} numbers, and {GRAPH} makes users of {encoder.width}",
        )
    with _reading(f"{name}/{GOLDEN}"), np.load(artifact.file(GOLDEN), allow_pickle=False) as file:
        golden = {key: file[key] for key in file.files}
    _check_golden(golden, encoder, matrix, name)
    coded = has_numba() and CODES in artifact.files
    return Opened(
        versions,
        nodes,
        ids,
        leaf_start,
        matrix,
        satisfaction,
        attributes,
        encoder,
        max_history,
        prior,
        Codes.open(artifact.path, matrix) if coded else None,
    )


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """What reading a file may raise becomes a CorruptArtifact that names it."""
    try:
        yield
    except CorruptArtifact as e:
        raise _corrupt(where, e.message, e.value) from e
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        TypeError,
        zipfile.BadZipFile,
        pa.ArrowException,
    ) as e:
        raise _corrupt(where, f"cannot be read ({type(e).__name__}: {e})") from e


def _mapped(path: Path) -> npt.NDArray[Any]:
    # A plain array over the map: slicing np.memmap itself costs microseconds.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _check_array(
    values: npt.NDArray[Any], dtype: np.dtype[Any], shape: tuple[int, ...], where: str
) -> None:
    """-1 in a shape is any length."""
    same = values.ndim == len(shape) and all(
        wanted in (-1, got) for wanted, got in zip(shape, values.shape, strict=True)
    )
    if values.dtype != dtype or not same:
        sizes = ", ".join("any" if size < 0 else str(size) for size in shape)
        raise _corrupt(where, f"must be {dtype}[{sizes}], is {values.dtype}{list(values.shape)}")
    if not values.flags.c_contiguous:
        raise _corrupt(where, "must be C-contiguous")


def _check_golden(
    golden: dict[str, npt.NDArray[Any]], encoder: UserEncoder, matrix: Float32, name: str
) -> None:
    where = f"{name}/{GOLDEN}"
    try:
        expected = np.asarray(golden["user"], np.float32)
        top_items = np.asarray(golden["top_items"], np.int64)
        top_scores = np.asarray(golden["top_scores"], np.float32)
        user = encoder.run(
            np.asarray(golden["ids"], np.int64), np.asarray(golden["length"], np.int64)
        )
        same = _close(user, expected)
        best = _best_scores(user, matrix, top_scores.shape[1], name) if same else top_scores
        same = same and _close(best, top_scores)
        at_items = np.einsum("gd,gtd->gt", user, matrix[top_items])
        same = same and _close(at_items, top_scores)
    except CorruptArtifact:
        raise
    except Exception as e:  # whatever stops the graph on inputs that it was exported with
        raise _corrupt(where, f"cannot be computed ({type(e).__name__}: {e})") from e
    if not same:
        raise _corrupt(where, f"the golden outputs differ by more than {TOLERANCE:g}")


def _close(got: Float32, expected: Float32) -> bool:
    return got.shape == expected.shape and bool(
        np.allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)
    )


def _best_scores(user: Float32, matrix: Float32, count: int, name: str) -> Float32:
    """float32[G, count], falling: each user's best scores over all items.

    An item with a number that is not finite scores nothing finite, whoever the user is.
    """
    best = np.empty((len(user), 0), np.float32)
    for at in range(0, len(matrix), _ROWS_A_BLOCK):
        scores = user @ matrix[at : at + _ROWS_A_BLOCK].T
        if not np.isfinite(scores).all():
            raise _corrupt(f"{name}/{MATRIX}", "holds a number that is not finite")
        best = np.concatenate([best, scores], axis=1)
        if best.shape[1] > count:
            best = np.partition(best, best.shape[1] - count, axis=1)[:, -count:]
    return -np.sort(-best, axis=1)


def _corrupt(field: str, message: str, value: object = None) -> CorruptArtifact:
    return CorruptArtifact(
        message, field=field, value=value, remedy="Publish it again (serendip retriever)."
    )
