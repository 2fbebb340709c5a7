"""Export and the artefact: what is written, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from cyclic_world import World

from serendip.artifacts import Artifact, Artifacts
from serendip.catalog.logs import read_interactions
from serendip.core import CorruptArtifact, NotFound
from serendip.progress import Tick
from serendip.retrieval import export, fitting
from serendip.retrieval.checkpoint import Epoch
from serendip.retrieval.codes import CODES, SCALES, Codes, write_codes
from serendip.retrieval.compiled import has_numba
from serendip.retrieval.encoder import UserEncoder
from serendip.retrieval.export import load_model, parity_error, write_retriever
from serendip.retrieval.fitting import best_of
from serendip.retrieval.model import SequenceModel
from serendip.retrieval.opening import FILES
from serendip.retrieval.ranker import ClusterRanker
from serendip.retrieval.sequences import Sequences
from serendip.retrieval.train import order_version, publish_retriever
from serendip.tree.cluster_tree import ClusterTree, read_item_order

# --- the artefact ------------------------------------------------------------------------


def test_the_artefact_has_what_a_server_needs(cyclic: World) -> None:
    retriever, tree = cyclic.retriever, cyclic.tree
    assert set(retriever.files) == {
        "attributes.parquet",
        "curves.svg",
        "golden.npz",
        "item_id_start.npy",
        "item_id_table.npy",
        "item_ids.npy",
        "item_order.parquet",
        "items.npy",
        "metrics.jsonl",
        "model.onnx",
        "model.onnx.data",
        "model.safetensors",
        "nodes.parquet",
        "satisfaction.npy",
    }
    assert retriever.inputs["tree"] == tree.version
    assert retriever.log_until == 1000 + 23
    assert retriever.facts["order_version"] == order_version(tree)
    assert retriever.facts["parity_max_abs"] <= 1e-4
    matrix = np.load(retriever.file("items.npy"), allow_pickle=False)
    assert (matrix.shape, matrix.dtype, matrix.flags.c_contiguous) == ((120, 25), np.float32, True)
    order = read_item_order(retriever.file("item_order.parquet"), tree.nodes.leaf_count)
    assert order[0] == tree.item_ids
    assert order[1].tolist() == tree.leaf_start.tolist()
    graph = onnx.load(retriever.file("model.onnx"))
    assert {o.domain: o.version for o in graph.opset_import}[""] == 23


def test_the_same_inputs_are_not_trained_on_again(
    cyclic: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serendip.retrieval.train.fit", None)
    assert publish_retriever(cyclic.config, cyclic.artifacts) == cyclic.retriever


def test_an_interrupted_training_is_gone_on_from(
    cyclic: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cyclic.artifacts.root / "tree", tmp_path / "tree")
    artifacts, numbers = Artifacts(tmp_path), []
    short = cyclic.config.retriever.model_copy(update={"epochs": 3, "blocks": 1, "dropout": 0.2})
    config = cyclic.config.model_copy(update={"retriever": short})
    whole = fitting._Training.epoch

    def interrupted(training: fitting._Training, number: int, tick: Tick) -> Epoch:
        numbers.append(number)
        if len(numbers) == 3:
            raise KeyboardInterrupt
        return whole(training, number, tick)

    monkeypatch.setattr(fitting._Training, "epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish_retriever(config, artifacts)
    assert artifacts.current_version("retriever") is None
    resumed = publish_retriever(config, artifacts)
    assert numbers == [1, 2, 3, 3]
    assert set(resumed.files) == set(cyclic.retriever.files)

    sequences = Sequences.from_log(read_interactions(config.data_path), cyclic.tree.item_ids)
    undisturbed, _, _ = fitting.fit(sequences, len(cyclic.tree.item_ids), short, config.seed)
    weights = undisturbed.state_dict()
    for name, value in load_model(resumed).state_dict().items():
        assert torch.equal(value, weights[name])


def test_the_artefact_tells_how_training_went(cyclic: World) -> None:
    lines = cyclic.retriever.file("metrics.jsonl").read_text().splitlines()
    epochs = [Epoch(**json.loads(line)) for line in lines]
    facts = cyclic.retriever.facts
    assert [e.number for e in epochs] == list(range(1, facts["epochs"] + 1))
    assert facts["loss"] == "full"
    assert facts["ndcg10"] == max(e.ndcg10 for e in epochs) == best_of(epochs).ndcg10
    assert facts["ndcg10"] > 0.5
    assert facts["hr10"] >= facts["ndcg10"] >= facts["mrr10"] > 0
    curves = cyclic.retriever.file("curves.svg").read_text()
    assert curves.rstrip().endswith("</svg>")


def test_without_a_tree_it_says_which_stage_to_run(cyclic: World, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="serendip tree"):
        publish_retriever(cyclic.config, Artifacts(tmp_path))


def test_the_order_version_follows_items_and_leaves(cyclic: World) -> None:
    tree = cyclic.tree
    renamed = dataclasses.replace(tree, item_ids=("x", *tree.item_ids[1:]))
    start = tree.leaf_start.copy()
    start[1] += 1
    moved = ClusterTree(tree.nodes, tree.item_ids, start)
    assert len({order_version(t) for t in (tree, renamed, moved)}) == 3


def test_an_export_that_differs_is_not_published(
    cyclic: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(cyclic.retriever)
    exported = cyclic.retriever.file("model.onnx")
    assert parity_error(model, exported) <= 1e-4
    with torch.no_grad():
        model.norm.bias[0] += 1e-3
    assert parity_error(model, exported) == pytest.approx(1e-3, rel=0.05)

    def copied(_: SequenceModel, path: Path) -> None:
        for name in ("model.onnx", "model.onnx.data"):
            shutil.copy(exported.with_name(name), path.with_name(name))

    monkeypatch.setattr(export, "export_onnx", copied)
    with pytest.raises(CorruptArtifact, match="differs from the model"):
        write_retriever(tmp_path, model, cyclic.tree, np.zeros(120, np.float32))


def test_a_large_matrix_is_coded_as_well(
    cyclic: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(cyclic.retriever)
    assert not (cyclic.retriever.path / CODES).exists()
    monkeypatch.setattr(export, "CODED_FROM", 120)
    write_retriever(tmp_path, model, cyclic.tree, np.zeros(120, np.float32))
    matrix = np.load(tmp_path / "items.npy")
    codes = Codes.of(np.load(tmp_path / CODES), np.load(tmp_path / SCALES), matrix)
    assert codes.worst < 0.51 * np.sqrt(32)


def test_a_gpu_gives_the_same_user_vectors(cyclic: World) -> None:
    encoder = UserEncoder.open(cyclic.retriever.file("model.onnx"))
    if encoder.provider != "CUDAExecutionProvider":
        pytest.skip(f"no CUDA device: onnxruntime runs on {encoder.provider}")
    with np.load(cyclic.retriever.file("golden.npz")) as golden:
        user = encoder.run(golden["ids"], golden["length"])
        np.testing.assert_allclose(user, golden["user"], rtol=1e-4, atol=1e-4)


def test_weights_of_another_shape_are_refused(cyclic: World) -> None:
    facts = {**cyclic.retriever.facts, "shape": {**cyclic.retriever.facts["shape"], "items": 5}}
    with pytest.raises(CorruptArtifact, match="disagree"):
        load_model(dataclasses.replace(cyclic.retriever, facts=facts))


# --- what open refuses -------------------------------------------------------------------


@pytest.fixture
def copy(cyclic: World, tmp_path: Path) -> Artifact:
    """The retriever's files, free to be spoilt; their sha256 is not looked at here."""
    shutil.copytree(cyclic.retriever.path, tmp_path / "copy")
    return dataclasses.replace(cyclic.retriever, path=tmp_path / "copy")


def test_a_whole_artefact_opens(copy: Artifact, capfd: pytest.CaptureFixture[str]) -> None:
    ranker = ClusterRanker.open(copy)
    assert (ranker.item_count, ranker.max_history, ranker.dimensions) == (120, 10, 25)
    assert ranker.versions.tree_version == copy.inputs["tree"]
    assert ranker.versions.retriever_version == copy.version
    assert capfd.readouterr() == ("", "")  # a runtime without a GPU keeps that to itself


def spoil_matrix(path: Path, change: str) -> None:
    matrix = np.load(path / "items.npy")
    if change in ("nan", "inf", "-inf"):
        matrix[119, 3] = float(change)
    elif change == "short":
        matrix = matrix[:-1]
    elif change == "double":
        matrix = matrix.astype(np.float64)
    elif change == "fortran":
        matrix = np.asfortranarray(matrix)
    elif change == "reversed":
        matrix = matrix[::-1]
    elif change == "narrow":
        matrix = np.ascontiguousarray(matrix[:, :-1])
    np.save(path / "items.npy", matrix)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nan", "items.npy: holds a number that is not finite"),
        ("inf", "items.npy: holds a number that is not finite"),
        ("-inf", "items.npy: holds a number that is not finite"),
        ("short", r"items.npy: must be float32\[120, any\], is float32\[119, 25\]"),
        ("double", "items.npy: must be float32"),
        ("fortran", "items.npy: must be C-contiguous"),
        ("reversed", "golden.npz: the golden outputs differ"),
        ("narrow", "items.npy: has rows of 24 numbers, and model.onnx makes users of 25"),
    ],
)
def test_a_spoilt_matrix_is_refused(copy: Artifact, change: str, message: str) -> None:
    spoil_matrix(copy.path, change)
    with pytest.raises(CorruptArtifact, match=message):
        ClusterRanker.open(copy)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_short_is_named(copy: Artifact, name: str, keep: float) -> None:
    data = (copy.path / name).read_bytes()
    (copy.path / name).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CorruptArtifact, match=re.escape(name)):
        ClusterRanker.open(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_none_or_is_not_there_is_named(copy: Artifact, name: str) -> None:
    (copy.path / name).write_bytes(b"no such thing" * 40)
    with pytest.raises(CorruptArtifact, match=re.escape(name)):
        ClusterRanker.open(copy)
    (copy.path / name).unlink()
    with pytest.raises(CorruptArtifact, match=re.escape(name)):
        ClusterRanker.open(copy)
    files = {file: digest for file, digest in copy.files.items() if file != name}
    with pytest.raises(CorruptArtifact, match="names no such file"):
        ClusterRanker.open(dataclasses.replace(copy, files=files))


@pytest.mark.parametrize("fact", ["order_version", "max_history", "prior_satisfaction"])
def test_a_fact_that_is_not_there_is_named(copy: Artifact, fact: str) -> None:
    facts = {key: value for key, value in copy.facts.items() if key != fact}
    with pytest.raises(CorruptArtifact, match=rf"manifest.json: .*{fact}"):
        ClusterRanker.open(dataclasses.replace(copy, facts=facts))


def test_codes_are_opened_and_checked_where_they_can_be_used(copy: Artifact) -> None:
    write_codes(copy.path, np.load(copy.path / "items.npy"))
    copy = dataclasses.replace(copy, files={**copy.files, CODES: "", SCALES: ""})
    ClusterRanker.open(copy)
    np.save(copy.path / CODES, np.roll(np.load(copy.path / CODES), 1, axis=0))
    if has_numba():
        with pytest.raises(CorruptArtifact, match="not the codes of the matrix"):
            ClusterRanker.open(copy)
    else:
        ClusterRanker.open(copy)  # they are not read


def test_a_pickle_is_never_loaded(copy: Artifact) -> None:
    np.save(copy.path / "satisfaction.npy", np.array([{}] * 120, dtype=object), allow_pickle=True)
    with pytest.raises(CorruptArtifact, match=r"satisfaction.npy: cannot be read"):
        ClusterRanker.open(copy)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("item_id_start.npy", lambda a: a[:-1], "must be int64"),
        ("item_id_start.npy", lambda a: np.maximum(a - 1, 0), "does not cut"),
        ("item_ids.npy", lambda a: a[:-1], "does not cut"),
        ("item_ids.npy", lambda a: np.where(a == ord("-"), 255, a).astype(np.uint8), "item_id"),
        ("item_id_table.npy", lambda a: a[:128], "slots for 120 IDs"),
        ("item_id_table.npy", lambda a: np.where(a == 7, 8, a).astype(np.int32), "does not"),
        ("item_id_table.npy", lambda a: np.where(a == 7, 500, a).astype(np.int32), "every rank"),
        ("item_id_table.npy", lambda a: np.roll(a, 100), "does not find"),
        ("satisfaction.npy", lambda a: a.astype(np.float64), "must be float32"),
        ("satisfaction.npy", lambda a: np.full(120, np.inf, np.float32), "not finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    copy: Artifact, name: str, change: Any, message: str
) -> None:
    np.save(copy.path / name, change(np.load(copy.path / name)))
    with pytest.raises(CorruptArtifact, match=message):
        ClusterRanker.open(copy)


def graph_of(inputs: dict[str, int], outputs: dict[str, int], width: int) -> onnx.ModelProto:
    """A graph with these names, types and output width, that does nothing."""
    info = onnx.helper.make_tensor_value_info
    given = [info(name, kind, ["b", "t"][: 1 + (name == "ids")]) for name, kind in inputs.items()]
    made = [info(name, kind, ["b", width]) for name, kind in outputs.items()]
    value = onnx.helper.make_tensor("v", onnx.TensorProto.FLOAT, [1, width], [0.0] * width)
    node = onnx.helper.make_node("Constant", [], list(outputs), value=value)
    graph = onnx.helper.make_graph([node], "g", given, made)
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10
    )


INT64, FLOAT = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
PORTS = {"ids": INT64, "length": INT64}


@pytest.mark.parametrize(
    ("inputs", "outputs", "width", "message"),
    [
        ({"ids": INT64}, {"user": FLOAT}, 25, "model.onnx: must map"),
        ({**PORTS, "time": INT64}, {"user": FLOAT}, 25, "model.onnx: must map"),
        ({"ids": onnx.TensorProto.INT32, "length": INT64}, {"user": FLOAT}, 25, "must map"),
        ({"items": INT64, "length": INT64}, {"user": FLOAT}, 25, "model.onnx: must map"),
        (PORTS, {"vector": FLOAT}, 25, "model.onnx: must map"),
        (PORTS, {"user": FLOAT}, 24, "model.onnx makes users of 24"),
        (PORTS, {"user": FLOAT}, 25, "golden"),
    ],
)
def test_a_graph_of_another_kind_is_refused(
    copy: Artifact, inputs: dict[str, int], outputs: dict[str, int], width: int, message: str
) -> None:
    onnx.save(graph_of(inputs, outputs, width), copy.path / "model.onnx")
    with pytest.raises(CorruptArtifact, match=message):
        ClusterRanker.open(copy)


def test_golden_outputs_of_other_weights_are_refused(copy: Artifact) -> None:
    with np.load(copy.path / "golden.npz") as file:
        golden = dict(file)
    for key in ("user", "top_scores"):
        changed = {**golden, key: golden[key] + np.float32(1e-2)}
        np.savez(copy.path / "golden.npz", **changed)
        with pytest.raises(CorruptArtifact, match=r"golden.npz: the golden outputs differ"):
            ClusterRanker.open(copy)


def test_a_tree_of_another_version_is_refused(cyclic: World) -> None:
    tree = cyclic.artifacts.open("tree", cyclic.tree.version)
    other = dataclasses.replace(tree, facts={"tree_version": "f" * 12})
    with pytest.raises(CorruptArtifact, match="the release's is another"):
        ClusterRanker.open(cyclic.retriever, other)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def without_leaves(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["leaf"]), path)


def reversed_rows(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.take(pa.array(range(len(table) - 1, -1, -1))), path)


@pytest.mark.parametrize("spoil", [Path.unlink, cut_short, without_leaves, reversed_rows])
def test_a_grown_tree_that_cannot_be_read_is_named(
    cyclic: World, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    tree = cyclic.artifacts.open("tree", cyclic.tree.version)
    shutil.copytree(tree.path, tmp_path / "tree")
    spoil(tmp_path / "tree" / "items.parquet")
    with pytest.raises(CorruptArtifact, match=rf"tree/{tree.version}/items.parquet"):
        ClusterRanker.open(cyclic.retriever, dataclasses.replace(tree, path=tmp_path / "tree"))
