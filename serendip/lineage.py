"""Where an artefact, or one item's served plan, comes from: back to the data and the log.

Reads manifests and the plan store; knows no model and no log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from serendip.artifacts import KINDS, Artifact, Artifacts, input_kind
from serendip.core import InvalidRequest, NotFound, Plan
from serendip.inventory import Entry, list_entries
from serendip.planning.lmdb_store import FILE, LmdbStore
from serendip.planning.plan_store import decode_plan


@dataclass(frozen=True)
class Origin:
    """An artefact or an outside input, and what it was made of.

    Attributes:
        entry: its manifest's part; None of an outside input (data, corpus) and of an artefact
            that was removed.
        made_of: its inputs, less those that another of its inputs was made of as well: they stand
            further down.
    """

    kind: str
    version: str
    entry: Entry | None
    made_of: tuple[Origin, ...]

    @property
    def removed(self) -> bool:
        """Whether it is an artefact that is not there any more."""
        return self.kind in KINDS and self.entry is None

    def to_json(self) -> dict[str, Any]:
        """JSON values, nested as it is."""
        known = self.entry
        return {
            "kind": self.kind,
            "version": self.version,
            "removed": self.removed,
            "created_at": known and known.created_at,
            "log_until": known and known.log_until,
            "rows": dict(known.rows) if known else {},
            "made_of": [origin.to_json() for origin in self.made_of],
        }


def origin_of(artifacts: Artifacts, kind: str, version: str = "") -> Origin:
    """Where a version comes from; by default the current one.

    Raises:
        NotFound: there is no such version.
        InvalidRequest: there is no such kind.
    """
    version = version or artifacts.current_version(kind) or artifacts.current(kind).version
    if not artifacts.exists(kind, version):
        artifacts.manifest(kind, version)  # says what is wrong with the name
    by_name = {e.name: e for e in list_entries(artifacts) if e.state == "published"}
    return _origin(by_name, kind, version)


def _origin(by_name: Mapping[str, Entry], kind: str, version: str) -> Origin:
    entry = by_name.get(f"{kind}/{version}")
    if entry is None:
        return Origin(kind, version, None, ())
    inputs = dict.fromkeys((input_kind(n) or n, v) for n, v in entry.inputs.items())
    made_of = [_origin(by_name, *named) for named in inputs]
    further = {name for origin in made_of for name in _below(origin)}
    direct = [o for o in made_of if (o.kind, o.version) not in further]
    return Origin(kind, version, entry, tuple(direct))


def _below(origin: Origin) -> set[tuple[str, str]]:
    found = {(o.kind, o.version) for o in origin.made_of}
    return found.union(*(_below(o) for o in origin.made_of))


@dataclass(frozen=True)
class ServedPlan:
    """One item's plan as the current release serves it, and where it comes from.

    Attributes:
        release: its version.
        origin: of the plans artefact that holds it.
    """

    release: str
    plan: Plan
    origin: Origin

    def to_json(self) -> dict[str, Any]:
        """JSON values; scores as they are served."""
        plan = self.plan
        clusters: Sequence[Any] = plan.clusters
        return {
            "item_id": plan.context_item_id,
            "release": self.release,
            "planned_at_ms": plan.planned_at_ms,
            "tree_version": plan.tree_version,
            "planner_version": plan.planner_version,
            "own_node_id": plan.own_node_id,
            "reasoning": plan.reasoning,
            "clusters": [
                {
                    "node_id": c.node_id,
                    "description": c.description,
                    "score": c.score,
                    "serendipitous": c.serendipitous,
                }
                for c in clusters
            ],
            "origin": self.origin.to_json(),
        }


def served_plan(artifacts: Artifacts, item_id: str) -> ServedPlan:
    """The plan that servers answer with for an item, from the current release.

    Raises:
        NotFound: there is no release, or its plans have none for the item; says why, and what
            servers do instead.
        CorruptArtifact: the release or its plans are not what they say.
    """
    release = artifacts.current("release")
    if "plans" not in release.inputs:
        raise InvalidRequest(
            "names no plans",
            field=f"release/{release.version}",
            remedy="Publish it again (serendip release).",
        )
    # One look-up: the hashes of millions of plans are verify's to compare.
    plans = artifacts.open("plans", release.inputs["plans"], verify=False)
    with contextlib.closing(LmdbStore(plans.file(FILE))) as store:
        found = store.get(item_id)
    if found is None:
        raise NotFound(
            _why_none(plans, item_id),
            field=f"plans/{plans.version}",
            value=item_id,
            remedy="Servers plan it live, or fall back to its cluster's best siblings.",
        )
    plan = decode_plan(found)
    return ServedPlan(release.version, plan, origin_of(artifacts, "plans", plans.version))


def _why_none(plans: Artifact, item_id: str) -> str:
    path: Path = plans.file("quarantine.parquet")
    rows = pq.read_table(path, filters=[("item_id", "=", item_id)]).to_pylist()
    if rows:
        return f"has no plan for the item, which was quarantined: {rows[0]['reason']}"
    return "has no plan for the item, which was not in the corpus"
