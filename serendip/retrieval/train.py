"""Trains the sequence model on a log and publishes it, exported, as a ``retriever`` artefact.

Satisfaction-weighted next-item prediction (fitting.py). This module knows no servers and nothing
of the high level.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from serendip.artifacts import Artifact, Artifacts
from serendip.catalog.items import fingerprint
from serendip.catalog.logs import log_until, read_interactions
from serendip.config import Config
from serendip.curves import Panel, draw_curves
from serendip.retrieval.attribute_columns import read_attributes
from serendip.retrieval.checkpoint import Epoch
from serendip.retrieval.export import write_retriever
from serendip.retrieval.fitting import TOP, fit
from serendip.retrieval.objective import loss_for
from serendip.retrieval.sequences import Sequences, prior_satisfaction, shrunk_satisfaction
from serendip.tree.cluster_tree import ClusterTree, tree_inputs

_STATE = "training"


def publish_retriever(config: Config, artifacts: Artifacts) -> Artifact:
    """Trains on the current tree and the log, and publishes the artefact ``retriever``.

    Reuses what the same config, tree and data have made before. A training that was interrupted
    or killed goes on from its last epoch, and ends with the same weights. Beside the model lie
    metrics.jsonl, a line an epoch, and curves.svg, the same to look at.

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

    tree = ClusterTree.open(tree_artifact)
    log = read_interactions(config.data_path, max_unknown_share=config.max_unknown_share)
    sequences = Sequences.from_log(log, tree.item_ids)
    attributes = read_attributes(config.data_path, config.retriever.attributes, tree.item_ids)
    items = len(tree.item_ids)
    until = max(log_until(log), tree_artifact.log_until or 0)
    with artifacts.publish("retriever", settings, inputs, log_until=until, resume=True) as draft:
        state = draft.path / _STATE
        model, epochs, best = fit(sequences, items, config.retriever, config.seed, state)
        satisfaction = shrunk_satisfaction(sequences, items, config.curation.shrinkage)
        parity = write_retriever(draft.path, model, tree, satisfaction, attributes)
        lines = (json.dumps(asdict(epoch)) + "\n" for epoch in epochs)
        (draft.path / "metrics.jsonl").write_text("".join(lines))
        plot_epochs(draft.path / "curves.svg", epochs)
        shutil.rmtree(state)
        draft.rows |= {"items.npy": items, "nodes.parquet": len(tree.nodes)}
        draft.facts |= {
            "order_version": order_version(tree),
            "shape": asdict(model.shape),
            "max_history": model.shape.max_history,
            "prior_satisfaction": prior_satisfaction(sequences),
            "attributes": attributes.column_names,
            "dimensions": model.shape.dimensions + 1,
            "loss": loss_for(config.retriever, items),
            "best_epoch": best.number,
            "hr10": best.hr10,
            "ndcg10": best.ndcg10,
            "mrr10": best.mrr10,
            "validation_users": best.users,
            "epochs": len(epochs),
            "events": len(sequences.item),
            "users": sequences.users,
            "parity_max_abs": parity,
            "seconds": round(sum(epoch.seconds for epoch in epochs), 1),
        }
    return artifacts.open("retriever", draft.version, verify=False)


def order_version(tree: ClusterTree) -> str:
    """12 hexadecimal digits over the item order and each item's leaf."""
    digest = hashlib.sha256(tree.leaf_of_rank.tobytes())
    for item_id in tree.item_ids:
        encoded = item_id.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return digest.hexdigest()[:12]


def plot_epochs(path: Path, epochs: list[Epoch]) -> None:
    """Draws the training loss, and the validation metrics, of each epoch as an SVG file."""
    number = [epoch.number for epoch in epochs]
    draw_curves(
        path,
        [
            Panel(
                "epoch", "training loss, weighted mean", number,
                {"loss": [epoch.loss for epoch in epochs]},
            ),
            Panel(
                "epoch", f"last events of {epochs[-1].users:,} users", number,
                {
                    f"{name.removesuffix('10').upper()}@{TOP}": [getattr(e, name) for e in epochs]
                    for name in ("hr10", "ndcg10", "mrr10")
                },
                from_zero=True,
            ),
        ],
    )  # fmt: skip
