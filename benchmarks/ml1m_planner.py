"""The planner on MovieLens's films with posters, against baselines that have read no film.

    ./build.sh bench ml1m_planner [--quick] [--data DIR] [--seeds 0 1 2]
                                  [--arms video_cot text ...] [--folder DIR]

The folder of films (items.parquet, interactions.parquet; docs/data.md) is research data that no
clone brings. Seed s holds out the s-th fold of the films, by hash, and seeds the model; the tree
is one. A held-out film's label is its best cluster by its own transitions; baselines are fitted on
the others. Every arm is judged on the same films, those with a poster. Labels are always siblings
of the film's cluster, and so the arms that know this are told apart from those that do not.
How far a label can be known at all is shown by halving the users: how often a film's best cluster
by one half's log is its best by the other's.

The recall of an arm is a mean over seeds, with the standard error over them and the binomial one
of all the films; differences are paired by film. Artefacts lie in --folder: an interrupted run
goes on. ``--quick`` trains for a few steps: it shows that the job runs, and its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import tomllib
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from world import TEXT_ARM

from serendip.artifacts import Artifact, Artifacts
from serendip.catalog.movielens import import_movielens
from serendip.catalog.schema import INTERACTIONS, ITEMS, USER_ID
from serendip.config import Config
from serendip.core import SerendipError
from serendip.curation.curate import curate, narrow, place_items, publish_pairs, read_pairs
from serendip.curation.engine import open_engine
from serendip.evaluation.baselines import AT, chance, recalls
from serendip.evaluation.metrics import hits_at_k, mean_and_error, recall_at_k, share_error
from serendip.evaluation.offline import publish_report
from serendip.planning.finetune import publish_planner
from serendip.progress import console
from serendip.tree.build import publish_tree
from serendip.tree.cluster_tree import ClusterTree

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "movielens.toml"
DATA = ROOT.parent / "shared" / "data" / "ml1m_posters"

# What an arm changes of configs/movielens.toml.
ARMS: dict[str, dict[str, dict[str, Any]]] = {
    "video_cot": {},
    "text": {"planner": {"style": "text", **TEXT_ARM}},
    # Equal portions for every cluster hide which clusters are labels often.
    "video_cot_all_pairs": {
        "planner": {"steps": 500, "batch_size": 32},
        "curation": {"contexts_per_cluster": 1_000_000},
    },
}
QUICK = {"pretrain_steps": 5, "steps": 5, "log_every": 0}
REPORTED = ("held_out", "unreadable", "recall", "match_rate", "serendipitous_share")
RIVALS = ("popular_siblings", "following")  # what differences are taken against

wide = Console(stderr=True, highlight=False, width=160)


def main() -> None:
    """Runs what is not done yet, and prints a table and one JSON object."""
    options = parse()
    for file in (ITEMS.file, INTERACTIONS.file):
        if not (options.data / file).is_file():
            raise SystemExit(
                f"ml1m_planner: no {file} in {options.data}: this bench reads films with posters, "
                "which cannot be passed on; name their folder by --data"
            )
    started = time.monotonic(), time.process_time()
    try:
        figures = summary({seed: run_seed(options, seed) for seed in options.seeds})
        figures["repeated_labels"] = repeat_labels(configure(options, 0, options.arms[0]))
    except SerendipError as e:
        raise SystemExit(f"ml1m_planner: {e}") from None
    figures["wall_s"] = round(time.monotonic() - started[0], 1)
    figures["cpu_s"] = round(time.process_time() - started[1], 1)
    show(figures)
    print(
        json.dumps(
            {
                "bench": "ml1m_planner",
                "conditions": conditions(options),
                "figures": figures,
                "ratios": ratios(figures),
            }
        )
    )


def parse() -> argparse.Namespace:
    """The bench's own options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seeds", type=int, nargs="+", choices=range(6), default=None)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["video_cot", "text"])
    parser.add_argument("--folder", type=Path, default=Path("artifacts/bench-ml1m-planner"))
    options = parser.parse_args()
    if options.seeds is None:
        options.seeds = [0] if options.quick else [0, 1, 2]
    return options


def configure(options: argparse.Namespace, seed: int, arm: str) -> Config:
    """configs/movielens.toml in a folder of its own, with what the arm changes."""
    values = tomllib.loads(CONFIG.read_text())
    values |= {
        "seed": seed,
        "source_path": str(options.data),
        "data_dir": str(options.folder / "data"),
        "artifacts_dir": str(options.folder),
    }
    values["curation"] = {"held_out_fold": seed, **values.get("curation", {})}
    for section, changes in ARMS[arm].items():
        values[section] = {**values[section], **changes}
    if options.quick:
        values["planner"] |= QUICK
        values["curation"]["held_out_share"] = 0.02
    return Config.model_validate(values)


# --- one seed ----------------------------------------------------------------------------


def run_seed(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Every arm of a seed on the films that all of them can be shown.

    Returns:
        labels, rankings by arm, and facts of each planner.
    """
    rankings: dict[str, dict[str, list[int]]] = {}
    facts: dict[str, dict[str, Any]] = {}
    films: dict[str, tuple[int, int]] = {}  # item -> (own cluster, label)
    for arm in options.arms:
        console.print(f"[bold]{arm}[/bold], seed {seed}")
        report, planner = make(configure(options, seed, arm))
        rows = pq.read_table(report.file("rankings.parquet")).to_pydict()
        ids = rows.pop("item_id")
        told = dict(zip(ids, zip(rows.pop("own_id"), rows.pop("label"), strict=True), strict=True))
        films = {i: t for i, t in told.items() if not facts or films.get(i) == t}
        for name, ranked in rows.items():
            ours = {"planner": arm, "planner_siblings": f"{arm}, siblings"}.get(name, name)
            rankings.setdefault(ours, dict(zip(ids, ranked, strict=True)))
        facts[arm] = {
            "training_s": planner.facts["seconds"],
            "training_pairs": planner.facts["training_pairs"],
            "validation_recall_at_1": planner.facts.get("recall_at_1"),
            **{name: report.facts[name] for name in REPORTED},
        }
    config = configure(options, seed, options.arms[0])
    artifacts = Artifacts(config.artifacts_path)
    tree = ClusterTree.open(artifacts.current("tree"))
    pairs = artifacts.current("pairs")
    support = {r["item_id"]: r["support"] for r in read_pairs(pairs, "labels").to_pylist()}
    clusters = tree.nodes.at_level(config.level)
    above = [tree.nodes.ancestor(own, config.level - config.level_gap) for own, _ in films.values()]
    siblings = [len(tree.nodes.under(node, config.level)) - 1 for node in above]
    return {
        "films": len(films),
        "labels": [label for _, label in films.values()],
        "rankings": {name: [of[i] for i in films] for name, of in rankings.items()},
        "chance": {
            "chance, siblings": chance(siblings),
            "chance": chance([len(clusters) - 1] * len(films)),
        },
        "label_support_median": median(support[i] for i in films),
        "comparison": pairs.facts["comparison"],
        "facts": facts,
    }


def make(config: Config) -> tuple[Artifact, Artifact]:
    """Data, tree, pairs, planner, report; what is there already is reused. Returns the last two
    in the order (report, planner).
    """
    artifacts = Artifacts(config.artifacts_path)
    import_movielens(Path(config.source_path), config.data_path)
    # One tree for all seeds, so that a film's label is the same whatever holds it out.
    publish_tree(config.model_copy(update={"seed": 0}), artifacts)
    publish_pairs(config, artifacts)
    planner = publish_planner(config, artifacts)
    return publish_report(config, artifacts), planner


def repeat_labels(config: Config) -> dict[str, Any]:
    """How often a film's best cluster by one half of the users is its best by the other half.

    Of all films that have one in both; ``at_random``: had the one half drawn from the clusters
    that its users went on to at all.
    """
    tree = ClusterTree.open(Artifacts(config.artifacts_path).current("tree"))
    log = pq.read_table(config.data_path / INTERACTIONS.file)
    users = pc.index_in(log.column(USER_ID), pc.unique(log.column(USER_ID)).sort())
    odd = pc.equal(pc.bit_wise_and(users, 1), 1)
    one, other = (best_clusters(config, tree, log.filter(half)) for half in (odd, pc.invert(odd)))
    both = sorted(one.keys() & other.keys())
    again = recall_at_k([one[i] for i in both], [other[i][0] for i in both], 1)
    return {
        "films": len(both),
        "recall_at_1": again,
        "recall_at_1_binomial_se": share_error(again, len(both)),
        "at_random": mean_and_error([(other[i][0] in one[i]) / len(one[i]) for i in both])[0],
    }


def best_clusters(config: Config, tree: ClusterTree, log: pa.Table) -> dict[str, list[int]]:
    """The clusters of each film that a log ranks, best first."""
    with open_engine(config.curation, config.artifacts_path) as engine:
        engine.view("items", place_items(tree, config.level, config.level_gap))
        engine.view("interactions", log)
        narrow(engine)
        curate(engine, config.curation)
        query = "SELECT item_id, node_id FROM scores ORDER BY item_id, rank_in_item"
        ranked: dict[str, list[int]] = {}
        for row in engine.fetch(query).to_pylist():
            ranked.setdefault(row["item_id"], []).append(row["node_id"])
    return ranked


# --- over seeds --------------------------------------------------------------------------


def summary(seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Means, standard errors and paired differences."""
    every = list(seeds.values())
    arms: dict[str, dict[str, Any]] = {}
    for name in every[0]["rankings"]:
        per_seed = [recalls(of["rankings"][name], of["labels"]) for of in every]
        films = sum(of["films"] for of in every)
        arms[name] = {}
        for k in AT:
            key = f"recall_at_{k}"
            mean, error = mean_and_error([r[key][0] for r in per_seed])
            hits = sum(r[key][0] * of["films"] for r, of in zip(per_seed, every, strict=True))
            arms[name] |= {
                key: mean,
                f"{key}_se": error if len(every) > 1 else None,
                f"{key}_binomial_se": share_error(hits / films, films),
                f"{key}_by_seed": [r[key][0] for r in per_seed],
            }
    for name in every[0]["chance"]:
        arms[name] = {
            f"recall_at_{k}": mean_and_error(
                [of["chance"][name][f"recall_at_{k}"][0] for of in every]
            )[0]
            for k in AT
        }
    return {
        "arms": arms,
        "differences": differences(every),
        "films": [of["films"] for of in every],
        "label_support_median": [of["label_support_median"] for of in every],
        "comparison": every[0]["comparison"],
        "planners": {str(seed): of["facts"] for seed, of in seeds.items()},
    }


def differences(every: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """recall_at_k of planners less that of a rival on the same films: (mean, standard error)."""

    def less(name: str, rival: str) -> dict[str, tuple[float, float]]:
        of_k = {}
        for k in AT:
            pairs = [
                zip(
                    *(hits_at_k(of["rankings"][n], of["labels"], k) for n in (name, rival)),
                    strict=True,
                )
                for of in every
            ]
            of_k[f"recall_at_{k}"] = mean_and_error([float(a) - b for p in pairs for a, b in p])
        return of_k

    planners = [n for n in every[0]["rankings"] if n.split(",")[0] in ARMS]
    found = {
        f"{name} - {rival}": less(name, rival)
        for name in planners
        if name.endswith("siblings")
        for rival in RIVALS
    }
    for name in planners:
        arm, _, rest = name.partition(",")
        rival = f"text,{rest}" if rest else "text"
        if arm != "text" and rival in planners:
            found[f"{name} - {rival}"] = less(name, rival)
    return found


def show(figures: dict[str, Any]) -> None:
    """A row an arm; standard errors over seeds, and of all films in brackets."""
    wide.print(f"{figures['films']} held-out films; ± over seeds (binomial, over all films)")
    table = Table("", *(f"recall@{k}" for k in AT))
    for name, of in figures["arms"].items():
        table.add_row(name, *(shown(of, f"recall_at_{k}") for k in AT))
    wide.print(table)
    table = Table("paired difference", *(f"recall@{k}" for k in AT))
    for name, of in figures["differences"].items():
        cells = (of[f"recall_at_{k}"] for k in AT)
        table.add_row(name, *(f"{mean:+.3f} ± {error:.3f}" for mean, error in cells))
    wide.print(table)
    again = figures["repeated_labels"]
    wide.print(
        f"label by one half of the users, told by the other half: {again['recall_at_1']:.3f} "
        f"({again['recall_at_1_binomial_se']:.3f}) of {again['films']} films; "
        f"drawn from the clusters that half went on to: {again['at_random']:.3f}"
    )


def shown(of: dict[str, Any], key: str) -> str:
    over_seeds, binomial = of.get(f"{key}_se"), of.get(f"{key}_binomial_se")
    text = f"{of[key]:.3f}"
    text += "" if over_seeds is None else f" ± {over_seeds:.3f}"
    return text if binomial is None else f"{text} ({binomial:.3f})"


def ratios(figures: dict[str, Any]) -> dict[str, float]:
    """recall_at_1 and recall_at_10 of the first planner arm over each rival's."""
    arms = figures["arms"]
    first = next(iter(arms))
    rivals = dict.fromkeys((*RIVALS, "chance, siblings"), f"{first}, siblings")
    if "text" in arms and first != "text":
        rivals["text"] = first
    return {
        f"recall_at_{k}_vs_{rival.replace(', ', '_')}": arms[ours][f"recall_at_{k}"]
        / arms[rival][f"recall_at_{k}"]
        for rival, ours in rivals.items()
        for k in (1, 10)
        if arms[rival][f"recall_at_{k}"]
    }


def conditions(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "quick": options.quick,
        "seeds": options.seeds,
        "arms": {arm: ARMS[arm] for arm in options.arms},
        "config": CONFIG.name,
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {"torch": version("torch")},
    }


if __name__ == "__main__":
    main()
