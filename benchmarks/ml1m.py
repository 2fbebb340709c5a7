"""The retriever's model on MovieLens-1M: five losses, and published figures beside them.

    ./build.sh bench ml1m [--quick] [--data FILE] [--split leave-one-out|temporal] [--seeds 0 1 2]
                          [--arms ours full ...]

Leave-one-out, or all users split at one moment; all items ranked, seen ones left out, the target
last among equal scores. The epoch is chosen on each user's event before the tested one, the test
events are looked at once a seed. Every arm is this project's model; "bce" and "gbce" are SASRec's
and gSASRec's losses on it, and share the settings of "sampled" and "full". What is done is kept in
--folder by arm, seed and settings: an interrupted run goes on from its last epoch. ``--quick`` is a
few epochs on a few users: it shows that the job runs, and its figures mean nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from common.histories import Histories, read_histories
from rich.console import Console
from rich.table import Table

from serendip.config import RetrieverConfig
from serendip.core import SerendipError
from serendip.progress import console
from serendip.retrieval.fitting import fit
from serendip.retrieval.metrics import hit_rate_at_k, mean_and_error, mrr_at_k, ndcg_at_k
from serendip.retrieval.objective import loss_for
from serendip.retrieval.ranking import places_of_last
from serendip.retrieval.splits import Split, global_temporal, leave_one_out
from serendip.storage import write_atomically

TOP = 10
METRICS = ("hr10", "ndcg10", "mrr10")

# One setting for the losses, so that they are compared and nothing else.
BASE = RetrieverConfig(
    dimensions=64, blocks=2, heads=2, max_history=200, dropout=0.2, epochs=16, batch_size=32,
    lr=2e-3, patience=4, validation_users=2000,
)  # fmt: skip
# Wider: ahead on validation after every epoch that both were run for.
OURS = BASE.model_copy(update={"dimensions": 96})
ARMS: dict[str, RetrieverConfig] = {
    "bce": BASE.model_copy(update={"loss": "bce"}),
    "gbce": BASE.model_copy(update={"loss": "gbce", "negatives": 256}),
    "sampled": BASE.model_copy(update={"loss": "sampled", "negatives": 512}),
    "full": BASE.model_copy(update={"loss": "full"}),
    "ours": OURS,
}
TOLD = {
    "bce": "SASRec's BCE, 1 negative",
    "gbce": "gSASRec's gBCE, 256 negatives, t = .75",
    "sampled": "sampled softmax, 512 uniform",
    "full": "full cross-entropy",
    "ours": "ours: full cross-entropy, d = 96",
}
# (HR@10, NDCG@10) of MovieLens-1M, leave-one-out, full ranking, as their authors print them.
PUBLISHED = {
    "SASRec, BCE (gSASRec's README)": (0.2392, 0.1259),
    "gSASRec, 256 negatives (its README)": (0.3003, 0.1726),
    "HSTU (its README; other tie order)": (0.3097, 0.1720),
    "HSTU-large (its README; other tie order)": (0.3294, 0.1893),
    "eSASRec (its paper)": (0.3133, 0.1772),
}
QUICK_USERS = 400
QUICK = {"dimensions": 32, "max_history": 50, "epochs": 2}

wide = Console(stderr=True, highlight=False, width=160)


@dataclass(frozen=True)
class Result:
    """One arm and seed: the test metrics, and what they took.

    Attributes:
        validation_ndcg10: of the best epoch, which it was chosen by.
        wall_s, cpu_s: of all epochs, validation included.
    """

    hr10: float
    ndcg10: float
    mrr10: float
    validation_ndcg10: float
    best_epoch: int
    epochs: int
    wall_s: float
    cpu_s: float


def main() -> None:
    """Runs what is not done yet, and prints a table and one JSON object."""
    options = parse()
    try:
        data = read_histories(options.data)
        if options.quick:
            data = few_users(data)
        split = (global_temporal if options.split == "temporal" else leave_one_out)(data.sequences)
    except SerendipError as e:
        raise SystemExit(f"ml1m: {e}") from None
    results: dict[str, dict[int, Result]] = {arm: {} for arm in options.arms}
    for seed in options.seeds:
        for arm in options.arms:
            config = ARMS[arm].model_copy(update=QUICK if options.quick else {})
            console.print(f"[bold]{arm}[/bold], seed {seed}")
            results[arm][seed] = run(config, seed, split, data.items, options.folder)
    show(results, data, split)
    print(json.dumps({
        "bench": "ml1m",
        "conditions": conditions(options, data, split),
        "figures": figures(results),
        "ratios": ratios(results),
    }))  # fmt: skip


def parse() -> argparse.Namespace:
    """The bench's own options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--split", choices=("leave-one-out", "temporal"), default="leave-one-out")
    parser.add_argument("--seeds", type=int, nargs="+", default=None)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--folder", type=Path, default=Path("artifacts/bench-ml1m"))
    options = parser.parse_args()
    if options.seeds is None:
        options.seeds = [0] if options.quick else [0, 1, 2]
    return options


def few_users(data: Histories) -> Histories:
    """The first users alone, with the events that a quick run reads."""
    whole = data.sequences
    kept = np.zeros(whole.users, np.int64)
    kept[:QUICK_USERS] = 50
    return Histories(whole.first_events(kept), data.items, data.source)


def run(config: RetrieverConfig, seed: int, split: Split, items: int, folder: Path) -> Result:
    """Trains and tests, or reads what an earlier run of the same settings came to."""
    config = config.model_copy(update={"loss": loss_for(config, items)})
    key = hashlib.sha256(json.dumps(config.recipe(), sort_keys=True).encode())
    for part in (split.training, split.test):
        for values in (part.item, part.start):
            key.update(values.tobytes())
    state = folder / f"{config.loss}-{seed}-{key.hexdigest()[:12]}"
    result = state / "result.json"
    if result.is_file():
        return Result(**json.loads(result.read_bytes()))
    model, epochs, best = fit(split.training, items, config, seed, state)
    place = places_of_last(model, split.test, split.users)
    found = Result(
        hr10=hit_rate_at_k(place, TOP),
        ndcg10=ndcg_at_k(place, TOP),
        mrr10=mrr_at_k(place, TOP),
        validation_ndcg10=best.ndcg10,
        best_epoch=best.number,
        epochs=len(epochs),
        wall_s=round(sum(epoch.seconds for epoch in epochs), 1),
        cpu_s=round(sum(epoch.cpu_seconds for epoch in epochs), 1),
    )
    lines = (json.dumps(asdict(epoch)) + "\n" for epoch in epochs)
    (state / "metrics.jsonl").write_text("".join(lines))
    write_atomically(result, json.dumps(asdict(found), indent=1).encode())
    return found


def show(results: dict[str, dict[int, Result]], data: Histories, split: Split) -> None:
    """A row an arm, best validation NDCG@10 beside it, and the published rows."""
    table = Table(
        f"{data.source}: {len(split.users):,} users, {data.items:,} items", "HR@10", "NDCG@10",
        "MRR@10", "validation NDCG@10", "epochs", "wall s", "CPU s",
    )  # fmt: skip
    for arm, by_seed in results.items():
        of = list(by_seed.values())
        table.add_row(
            TOLD[arm],
            *(_shown([getattr(r, name) for r in of]) for name in METRICS),
            _shown([r.validation_ndcg10 for r in of]),
            *(f"{np.mean([getattr(r, n) for r in of]):.0f}" for n in ("epochs", "wall_s", "cpu_s")),
        )
    table.add_section()
    for name, (hr, ndcg) in PUBLISHED.items():
        table.add_row(f"published, leave-one-out: {name}", f"{hr:.4f}", f"{ndcg:.4f}")
    wide.print(table)


def _shown(values: list[float]) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:.4f}" if len(values) < 2 else f"{mean:.4f} ± {error:.4f}"


def figures(results: dict[str, dict[int, Result]]) -> dict[str, Any]:
    """Means and standard errors over seeds, of "ours" under the fixed keys; every result."""
    found: dict[str, Any] = {
        "arms": {
            arm: {str(seed): asdict(result) for seed, result in by_seed.items()}
            for arm, by_seed in results.items()
        }
    }
    for name in METRICS:
        ours = [getattr(result, name) for result in results.get("ours", {}).values()]
        mean, error = mean_and_error(ours)
        found[f"{name}_mean"] = mean if ours else None
        found[f"{name}_se"] = error if len(ours) > 1 else None
    return found


def ratios(results: dict[str, dict[int, Result]]) -> dict[str, float]:
    """NDCG@10 of "ours" over each other arm's, means over seeds."""
    mean = {a: np.mean([r.ndcg10 for r in of.values()]) for a, of in results.items()}
    if "ours" not in mean:
        return {}
    return {
        f"ndcg10_vs_{arm}": float(mean["ours"] / value)
        for arm, value in mean.items()
        if arm != "ours" and value
    }


def conditions(options: argparse.Namespace, data: Histories, split: Split) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "quick": options.quick,
        "data": data.source,
        "split": options.split,
        "users": len(split.users),
        "items": data.items,
        "training_events": len(split.training.item),
        "seeds": options.seeds,
        "arms": {arm: ARMS[arm].model_dump(mode="json") for arm in options.arms},
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {"torch": version("torch")},
    }


if __name__ == "__main__":
    main()
