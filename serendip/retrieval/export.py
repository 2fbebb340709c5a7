"""Writes a trained model as the files that the ClusterRanker opens, and checks them.

The graph (ONNX, opset 23) turns histories into user vectors; the item matrix stays outside,
leaf-ordered, to be memory-mapped. This module knows no log and no server.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from serendip.artifacts import Artifact
from serendip.core import CorruptArtifact
from serendip.retrieval.codes import CODED_FROM, write_codes
from serendip.retrieval.item_ids import ItemIds
from serendip.retrieval.model import ModelShape, SequenceModel, UserEncoder
from serendip.tree.cluster_tree import ClusterTree, write_nodes

OPSET = 23
MAX_DIFFERENCE = 1e-4
_LARGEST_BATCH = 4096
_GOLDEN_ROWS = 4
_GOLDEN_TOP = 20

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def write_retriever(
    folder: Path,
    model: SequenceModel,
    tree: ClusterTree,
    satisfaction: Float32,
    attributes: pa.Table | None = None,
) -> float:
    """Writes all files of a retriever artefact; returns the export's parity error.

    Args:
        model: its item i + 1 is the tree's item i.
        satisfaction: float32[N], what a cold user's items are ranked by.
        attributes: what filters may name, N rows in item order; None: nothing.

    Raises:
        CorruptArtifact: the exported graph differs from the model by more than 1e-4, or the tree
            has an item twice.
    """
    model = model.eval()
    matrix = np.ascontiguousarray(model.item_matrix().detach().numpy(), np.float32)
    np.save(folder / "items.npy", matrix, allow_pickle=False)
    if len(matrix) >= CODED_FROM:
        write_codes(folder, matrix)
    np.save(folder / "satisfaction.npy", satisfaction, allow_pickle=False)
    write_nodes(tree.nodes, folder / "nodes.parquet")
    columns = {
        "item_id": pa.array(tree.item_ids, pa.string()),
        "leaf": pa.array(tree.leaf_of_rank, pa.int32()),
    }
    pq.write_table(pa.table(columns), folder / "item_order.parquet")
    ItemIds.of(tree.item_ids).save(folder)
    pq.write_table(
        pa.table({}) if attributes is None else attributes, folder / "attributes.parquet"
    )
    save_file(dict(model.state_dict()), folder / "model.safetensors")
    export_onnx(model, folder / "model.onnx")
    parity = parity_error(model, folder / "model.onnx")
    if not parity <= MAX_DIFFERENCE:
        raise CorruptArtifact(
            f"the exported graph differs from the model by more than {MAX_DIFFERENCE:g}",
            field="retriever/model.onnx",
            value=parity,
            remedy="Train again with a smaller retriever.lr, or another onnxruntime.",
        )
    _write_golden(folder / "golden.npz", model, matrix)
    return parity


def load_model(artifact: Artifact) -> SequenceModel:
    """The trained torch model of a retriever artefact. Raises CorruptArtifact."""
    try:
        model = SequenceModel(ModelShape(**artifact.facts["shape"]))
        model.load_state_dict(load_file(artifact.file("model.safetensors")))
    except (KeyError, TypeError, RuntimeError) as e:
        raise CorruptArtifact(
            f"weights and shape disagree ({type(e).__name__})",
            field=f"retriever/{artifact.version}/model.safetensors",
            remedy="Publish the retriever again.",
        ) from e
    return model.eval()


def export_onnx(model: SequenceModel, path: Path) -> None:
    """Writes UserEncoder(model) as an ONNX graph: (ids, length) -> user, any batch and length.

    Its weights lie beside it, in PATH.data: the runtime maps them, so that a graph of a million
    items opens in milliseconds, and a graph may be larger than the 2 GB of one protobuf.
    """
    example = torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 2])
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    steps = torch.export.Dim("steps", min=1, max=model.shape.max_history)
    with _quiet():
        program = torch.onnx.export(
            UserEncoder(model).eval(),
            example,
            dynamo=True,
            dynamic_shapes={"ids": {0: batch, 1: steps}, "length": {0: batch}},
            opset_version=OPSET,
            input_names=["ids", "length"],
            output_names=["user"],
            external_data=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=True)
    onnx.checker.check_model(str(path), full_check=True)


def parity_error(model: SequenceModel, path: Path) -> float:
    """Largest absolute difference between the graph's user vectors and the model's.

    Over random histories of several shapes, against the model's own full pass, so that the
    last-position shortcut is checked as well.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    longest = model.shape.max_history
    worst = 0.0
    for rows, steps in ((1, 1), (1, longest), (3, min(7, longest)), (16, longest)):
        ids, length = _random_histories(model.shape, rows, steps)
        (got,) = session.run(["user"], {"ids": ids, "length": length})
        with torch.inference_mode():
            hidden = model(torch.from_numpy(ids), torch.from_numpy(length)).numpy()
        expected = hidden[np.arange(rows), length - 1]
        worst = max(worst, float(np.abs(got[:, :-1] - expected).max()))
        worst = max(worst, float(np.abs(got[:, -1] - 1).max()))
    return worst


def _write_golden(path: Path, model: SequenceModel, matrix: Float32) -> None:
    """Inputs, and what any runtime must make of them: user vectors and top scores."""
    ids, length = _random_histories(model.shape, _GOLDEN_ROWS, model.shape.max_history)
    with torch.inference_mode():
        encoder = UserEncoder(model).eval()
        user = encoder(torch.from_numpy(ids), torch.from_numpy(length)).numpy()
    scores = user @ matrix.T
    top = np.argsort(-scores, axis=1, kind="stable")[:, :_GOLDEN_TOP]
    np.savez(
        path,
        allow_pickle=False,
        ids=ids,
        length=length,
        user=user,
        top_items=top.astype(np.int64),
        top_scores=np.take_along_axis(scores, top, axis=1),
    )


def _random_histories(shape: ModelShape, rows: int, steps: int) -> tuple[Int64, Int64]:
    """The first row is full, the others are of any length; fixed by the arguments."""
    rng = np.random.default_rng([rows, steps])
    length = rng.integers(1, steps + 1, rows)
    length[0] = steps
    ids = rng.integers(1, shape.items + 1, (rows, steps))
    ids[np.arange(steps)[None, :] >= length[:, None]] = 0
    return ids, length


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its steps on stdout, by warnings and by loggers: not ours to show."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
