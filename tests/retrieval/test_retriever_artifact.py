"""Training, export and the artefact: what is learnt, what is written, what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cyclic_world import World

from serendip.artifacts import Artifact, Artifacts
from serendip.config import RetrieverConfig
from serendip.core import CorruptArtifact, InvalidData, NotFound
from serendip.retrieval import export
from serendip.retrieval.codes import CODES, SCALES, Codes, numpy_bounds, write_codes
from serendip.retrieval.compiled import has_numba
from serendip.retrieval.export import load_model, parity_error, write_retriever
from serendip.retrieval.model import ModelShape, SequenceModel
from serendip.retrieval.ranker import ClusterRanker
from serendip.retrieval.sequences import Sequences
from serendip.retrieval.train import fit, order_version, publish_retriever, validate
from serendip.tree.cluster_tree import ClusterTree, read_item_order

TINY = RetrieverConfig(
    dimensions=16, blocks=1, heads=2, max_history=6, epochs=2, batch_size=16, threads=1
)


def noise(items: int, users: int, events: int) -> Sequences:
    rng = np.random.default_rng(0)
    start = np.arange(users + 1, dtype=np.int64) * events
    item = rng.integers(0, items, users * events)
    return Sequences(item, np.ones(len(item), np.float32), start)


# --- learning ----------------------------------------------------------------------------


def test_a_certain_next_item_is_learnt(cyclic: World) -> None:
    facts = cyclic.retriever.facts
    assert facts["hr10"] > 0.9
    assert facts["ndcg10"] > 0.5
    assert facts["validation_users"] == 250


def test_sampled_softmax_learns_it_too(cyclic: World) -> None:
    from serendip.catalog.logs import read_interactions

    log = read_interactions(cyclic.config.data_path)
    sequences = Sequences.from_log(log, cyclic.tree.item_ids)
    settings = cyclic.config.retriever.model_copy(update={"sampled_above": 1, "negatives": 40})
    _, _, best = fit(sequences, len(cyclic.tree.item_ids), settings, 0)
    assert best.hr10 > 0.9


def test_nothing_is_learnt_from_noise() -> None:
    # Enough epochs over few users to know their events by heart, were they shown.
    sequences = noise(items=300, users=300, events=8)
    settings = RetrieverConfig(
        dimensions=32, blocks=1, heads=2, max_history=8, epochs=25, lr=1e-2, dropout=0.0, threads=1
    )
    _, epochs, best = fit(sequences, 300, settings, 0)
    chance = 10 / (300 - 7)
    assert epochs[-1].loss < 5.0 < np.log(300)  # it did learn its training events
    assert best.hr10 < chance + 0.06


def test_a_model_that_tells_nothing_apart_gains_nothing() -> None:
    model = SequenceModel(ModelShape(40, 8, 1, 2, 4))
    with torch.no_grad():
        model.item.weight.zero_()
    sequences = noise(items=40, users=20, events=5)
    assert validate(model, sequences, sequences.validation_users()) == (0.0, 0.0)


def test_metrics_are_those_of_their_definition() -> None:
    model = SequenceModel(ModelShape(40, 8, 1, 2, 4)).eval()
    with torch.no_grad():
        model.item.weight.normal_(generator=torch.Generator().manual_seed(0))
    sequences = noise(items=40, users=30, events=5)
    ranks = []
    for user in range(30):
        events = sequences.item[user * 5 : user * 5 + 5]
        ids, length = torch.from_numpy(events[None, :-1] + 1), torch.tensor([4])
        vector = model(ids, length)[0, -1]
        score = (model.item.weight[1:] @ vector).tolist()
        rivals = set(range(40)) - set(events.tolist())
        ranks.append(sum(score[r] > score[events[-1]] for r in rivals))
    hr, ndcg = validate(model, sequences, sequences.validation_users())
    assert hr == pytest.approx(np.mean([r < 10 for r in ranks]))
    assert 0 < hr < 1
    assert ndcg == pytest.approx(np.mean([1 / np.log2(r + 2) if r < 10 else 0 for r in ranks]))


def test_satisfaction_weighs_what_is_learnt() -> None:
    # From item 0 users go on to 1, satisfied, or to 2, three times as often and not.
    pairs = np.tile(np.array([0, 1, 0, 2, 0, 2, 0, 2]), 40)
    weight = np.tile(np.array([1, 1, 1, 0.02, 1, 0.02, 1, 0.02], np.float32), 40)
    sequences = Sequences(pairs, weight, np.arange(161, dtype=np.int64) * 2)
    settings = TINY.model_copy(update={"epochs": 20, "lr": 1e-2})
    model, _, _ = fit(sequences, 3, settings, 0)
    vector = model.encode(torch.tensor([[1]]), torch.tensor([1]))
    scores = (vector @ model.item.weight[1:].T + model.bias[1:])[0]
    assert scores[1] > scores[2]


def test_the_same_seed_gives_the_same_model_and_leaves_the_callers_dice_alone() -> None:
    sequences = noise(items=30, users=40, events=9)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, _, _ = fit(sequences, 30, TINY, 3)
    assert torch.equal(torch.get_rng_state(), before)
    two, _, _ = fit(sequences, 30, TINY, 3)
    other, _, _ = fit(sequences, 30, TINY, 4)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one.item.weight, other.item.weight)


def test_a_log_with_nothing_to_learn_is_refused() -> None:
    with pytest.raises(InvalidData, match="two events"):
        fit(noise(items=9, users=5, events=1), 9, TINY, 0)


# --- the artefact ------------------------------------------------------------------------


def test_the_artefact_has_what_a_server_needs(cyclic: World) -> None:
    retriever, tree = cyclic.retriever, cyclic.tree
    assert set(retriever.files) == {
        "golden.npz",
        "item_order.parquet",
        "items.npy",
        "model.onnx",
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
    monkeypatch.setattr(export, "export_onnx", lambda _, path: shutil.copy(exported, path))
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
    codes = Codes.of(np.load(tmp_path / CODES), np.load(tmp_path / SCALES), matrix, numpy_bounds)
    assert codes.worst < 0.51 * np.sqrt(32)


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
    if change == "nan":
        matrix[7, 3] = np.nan
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
        ("nan", "not finite"),
        ("short", "must be float32"),
        ("double", "must be float32"),
        ("fortran", "C-contiguous"),
        ("reversed", "golden"),
        ("narrow", "golden"),
    ],
)
def test_a_spoilt_matrix_is_refused(copy: Artifact, change: str, message: str) -> None:
    spoil_matrix(copy.path, change)
    with pytest.raises(CorruptArtifact, match=message):
        ClusterRanker.open(copy)


@pytest.mark.parametrize(
    "name", ["model.onnx", "items.npy", "golden.npz", "nodes.parquet", "satisfaction.npy"]
)
def test_a_file_that_is_none_is_refused(copy: Artifact, name: str) -> None:
    (copy.path / name).write_bytes(b"no such thing")
    with pytest.raises(CorruptArtifact):
        ClusterRanker.open(copy)


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
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        ClusterRanker.open(copy)


def test_golden_outputs_of_other_weights_are_refused(copy: Artifact) -> None:
    with np.load(copy.path / "golden.npz") as file:
        golden = dict(file)
    golden["user"] = golden["user"] + np.float32(1e-2)
    np.savez(copy.path / "golden.npz", **golden)
    with pytest.raises(CorruptArtifact, match="golden outputs differ"):
        ClusterRanker.open(copy)
