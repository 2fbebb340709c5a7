"""Trains the sequence model on a log and publishes it, exported, as a ``retriever`` artefact.

Satisfaction-weighted next-item prediction: full cross-entropy for small catalogues, sampled
softmax with shared uniform negatives for large ones. Each user's last event is never trained
on; it chooses the epoch. This module knows no servers and nothing of the high level.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from serendip.artifacts import Artifact, Artifacts
from serendip.catalog.items import fingerprint
from serendip.catalog.logs import log_until, read_interactions
from serendip.config import Config, RetrieverConfig
from serendip.core import InvalidData
from serendip.progress import console, progress
from serendip.retrieval.attribute_columns import read_attributes
from serendip.retrieval.export import write_retriever
from serendip.retrieval.losses import full_cross_entropy, sampled_softmax
from serendip.retrieval.model import ModelShape, SequenceModel
from serendip.retrieval.padding import pad_histories
from serendip.retrieval.sequences import (
    Batch,
    Sequences,
    prior_satisfaction,
    shrunk_satisfaction,
    training_batches,
)
from serendip.tree.cluster_tree import ClusterTree, tree_inputs

TOP = 10
_VALIDATION_USERS = 5000
_WARM_UP_SHARE = 0.1
_FINAL_LR_SHARE = 0.03
_WEIGHT_DECAY = 0.01
_SCORE_FLOATS = 1 << 25  # of one block of scores in validation


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to.

    Attributes:
        loss: mean satisfaction-weighted negative log-likelihood of the training targets.
        hr10, ndcg10: of the held-out last events, all items ranked, seen ones left out; 0 if
            no user has enough history.
        users: how many they were.
    """

    number: int
    loss: float
    hr10: float
    ndcg10: float
    users: int


def publish_retriever(config: Config, artifacts: Artifacts) -> Artifact:
    """Trains on the current tree and the log, and publishes the artefact ``retriever``.

    Reuses what the same config, tree and data have made before.

    Raises:
        NotFound: there is no tree.
        InvalidData: the log breaks its schema, or has no user with two events of known items; a
            column of ``retriever.attributes`` is not there or has no fitting type.
        CorruptArtifact: the tree is corrupt, or the exported graph differs from the model.
    """
    tree_artifact = artifacts.current("tree")
    settings = {
        **config.retriever.model_dump(mode="json"),
        "seed": config.seed,
        "shrinkage": config.curation.shrinkage,
    }
    inputs = {**tree_inputs(tree_artifact), "data": fingerprint(config.data_path)}
    done = artifacts.reuse("retriever", settings, inputs)
    if done is not None:
        return done

    begun = time.monotonic()
    tree = ClusterTree.open(tree_artifact)
    log = read_interactions(config.data_path, max_unknown_share=config.max_unknown_share)
    sequences = Sequences.from_log(log, tree.item_ids)
    attributes = read_attributes(config.data_path, config.retriever.attributes, tree.item_ids)
    model, epochs, best = fit(sequences, len(tree.item_ids), config.retriever, config.seed)
    until = max(log_until(log), tree_artifact.log_until or 0)
    with artifacts.publish("retriever", settings, inputs, log_until=until) as draft:
        satisfaction = shrunk_satisfaction(sequences, len(tree.item_ids), config.curation.shrinkage)
        parity = write_retriever(draft.path, model, tree, satisfaction, attributes)
        draft.rows |= {"items.npy": len(tree.item_ids), "nodes.parquet": len(tree.nodes)}
        draft.facts |= {
            "order_version": order_version(tree),
            "shape": asdict(model.shape),
            "max_history": model.shape.max_history,
            "prior_satisfaction": prior_satisfaction(sequences),
            "attributes": attributes.column_names,
            "dimensions": model.shape.dimensions + 1,
            "best_epoch": best.number,
            "hr10": best.hr10,
            "ndcg10": best.ndcg10,
            "validation_users": best.users,
            "epochs": [asdict(epoch) for epoch in epochs],
            "events": len(sequences.item),
            "users": sequences.users,
            "parity_max_abs": parity,
            "seconds": round(time.monotonic() - begun, 1),
        }
    return artifacts.open("retriever", draft.version, verify=False)


def order_version(tree: ClusterTree) -> str:
    """12 hexadecimal digits over the item order and each item's leaf."""
    digest = hashlib.sha256(tree.leaf_of_rank.tobytes())
    for item_id in tree.item_ids:
        encoded = item_id.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return digest.hexdigest()[:12]


def fit(
    sequences: Sequences, items: int, config: RetrieverConfig, seed: int
) -> tuple[SequenceModel, list[Epoch], Epoch]:
    """Trains; returns (the model of the best epoch, all epochs, the best).

    The best has the highest NDCG@10; where no user can validate, it is the last. The same
    arguments give the same model on one machine. The caller's random state is left alone.

    Raises:
        InvalidData: no user has two events.
    """
    if not len(sequences.item) or np.diff(sequences.start).max() < 2:
        raise InvalidData(
            "no user has two events of items of the tree",
            field="interactions.parquet",
            remedy="Check that its item_id are those of items.parquet.",
        )
    rng = np.random.default_rng(seed)
    held_out = sequences.validation_users()
    if len(held_out) > _VALIDATION_USERS:
        held_out = np.sort(rng.choice(held_out, _VALIDATION_USERS, replace=False))
    shape = ModelShape(items, config.dimensions, config.blocks, config.heads, config.max_history)
    with _torch_state(seed, config.threads):
        model = SequenceModel(shape, config.dropout)
        optimizer = _optimizer(model, config.lr)
        epochs: list[Epoch] = []
        best: Epoch | None = None
        weights = model.state_dict()
        with progress("retriever", config.epochs) as tick:
            for number in range(1, config.epochs + 1):
                loss = _train_epoch(model, optimizer, sequences, config, rng, number)
                hr, ndcg = validate(model, sequences, held_out)
                epoch = Epoch(number, loss, hr, ndcg, len(held_out))
                epochs.append(epoch)
                if best is None or ndcg > best.ndcg10 or not len(held_out):
                    best = epoch
                    weights = copy.deepcopy(model.state_dict())
                console.print(
                    f"  epoch {number}: loss {loss:.4f}, HR@10 {hr:.4f}, NDCG@10 {ndcg:.4f}"
                )
                tick(note=f"NDCG@10 {ndcg:.4f}")
    assert best is not None
    model.load_state_dict(weights)
    return model.eval(), epochs, best


def validate(model: SequenceModel, sequences: Sequences, users: np.ndarray) -> tuple[float, float]:
    """(HR@10, NDCG@10) of the users' last events, given all before: int64[U] -> two means.

    All items are ranked; those that the user has seen before are left out, but never the
    event's own. Among equal scores the event's item comes last, so that a model that cannot
    tell items apart gains nothing.
    """
    if not len(users):
        return 0.0, 0.0
    model.eval()
    hits = gain = 0.0
    matrix = model.item_matrix().detach()
    block = max(1, min(256, _SCORE_FLOATS // len(matrix)))
    events = sequences.item
    with torch.inference_mode():
        for at in range(0, len(users), block):
            spans = [
                (sequences.start[u], sequences.start[u + 1] - 1) for u in users[at : at + block]
            ]
            seen = [events[first:last] for first, last in spans]
            target = torch.from_numpy(np.asarray([events[last] for _, last in spans]))
            ids, length = pad_histories(seen, model.shape.max_history)
            vector = model.encode(torch.from_numpy(ids), torch.from_numpy(length))
            scores = torch.addmm(matrix[:, -1], vector, matrix[:, :-1].T)
            wanted = scores.gather(1, target[:, None])
            for row, ranks in enumerate(seen):
                scores[row, torch.from_numpy(ranks)] = -math.inf
            scores.scatter_(1, target[:, None], wanted)
            place = (scores >= wanted).sum(dim=1).double()  # 1 is the top
            found = place <= TOP
            hits += float(found.sum())
            gain += float((found / torch.log2(place + 1)).sum())
    model.train()
    return hits / len(users), gain / len(users)


# --- one epoch ---------------------------------------------------------------------------


def _train_epoch(
    model: SequenceModel,
    optimizer: torch.optim.Optimizer,
    sequences: Sequences,
    config: RetrieverConfig,
    rng: np.random.Generator,
    number: int,
) -> float:
    batches = list(training_batches(sequences, config.max_history, config.batch_size, rng))
    model.train()
    total = weight = 0.0
    for i, batch in enumerate(batches):
        done = (number - 1 + i / len(batches)) / config.epochs
        for group in optimizer.param_groups:
            group["lr"] = config.lr * _schedule(done)
        loss, batch_weight = batch_loss(model, batch, config, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach()) * batch_weight
        weight += batch_weight
    return total / max(weight, 1e-9)


def batch_loss(
    model: SequenceModel, batch: Batch, config: RetrieverConfig, rng: np.random.Generator
) -> tuple[Tensor, float]:
    """(satisfaction-weighted mean loss, sum of the weights) of one batch."""
    learnt = torch.from_numpy(batch.weight > 0)
    weight = torch.from_numpy(batch.weight)[learnt]
    target = torch.from_numpy(batch.target)[learnt]
    vector = model(torch.from_numpy(batch.ids), torch.from_numpy(batch.length))[learnt]
    total = weight.sum()
    share = weight / total.clamp_min(1e-9)
    if model.shape.items > config.sampled_above:
        drawn = rng.integers(1, model.shape.items + 1, config.negatives)
        loss = sampled_softmax(model, vector, target, share, torch.from_numpy(drawn))
    else:
        # Row 0 is padding: it is no item, so it takes no part in the softmax.
        loss = full_cross_entropy(vector, model.item.weight[1:], model.bias[1:], target - 1, share)
    return loss, float(total)


def _schedule(done: float) -> float:
    warm = min(1.0, (done + 1e-3) / _WARM_UP_SHARE)
    return warm * (1 - (1 - _FINAL_LR_SHARE) * done)


def _optimizer(model: SequenceModel, lr: float) -> torch.optim.AdamW:
    # Decay would pull rare items' vectors to zero between the batches that they are in.
    decayed = [p for name, p in model.blocks.named_parameters() if p.dim() > 1]
    ids = {id(p) for p in decayed}
    others = [p for p in model.parameters() if id(p) not in ids]
    groups = [
        {"params": decayed, "weight_decay": _WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


@contextmanager
def _torch_state(seed: int, threads: int) -> Iterator[None]:
    """Seeds torch and sets its threads; puts both back."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
