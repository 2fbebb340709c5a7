"""What the client's methods take and return, besides the border types of serendip.core.

Knows no message and no channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serendip.core import (
    AttributeType,
    Candidate,
    Constraint,
    Filter,
    Merge,
    NotFound,
    Plan,
    PlanSource,
    SerendipError,
    Versions,
)


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One event of a user's history.

    Attributes:
        item_id: the catalogue's ID.
        timestamp_ms: Unix time in milliseconds, 0 where unknown.
        satisfaction: in [0, 1]; None counts as satisfied.
    """

    item_id: str
    timestamp_ms: int = 0
    satisfaction: float | None = None


# Oldest first; a tuple is (item_id, timestamp_ms, satisfaction).
History = Sequence[str | tuple[str, int, float | None] | HistoryItem]

ConstraintName = Literal["not_own", "siblings", "none"]
MergeName = Literal["score", "quota"]


@dataclass(frozen=True, slots=True)
class PlanRow:
    """The outcome for one context item: a plan, or the error that tells why there is none.

    Attributes:
        age_s: seconds since the plan was made; 0 if it was made for this call.
        left_out: clusters of the plan that was found which the call's options left out.
    """

    plan: Plan | None
    source: PlanSource | None
    age_s: float
    versions: Versions
    error: SerendipError | None = None
    left_out: int = 0

    def require(self) -> Plan:
        """The plan; raises the row's error if there is none."""
        if self.plan is None:
            raise self.error if self.error is not None else NotFound("no plan")
        return self.plan


@dataclass(frozen=True, slots=True)
class Resolution:
    """Texts resolved to nodes.

    Attributes:
        node_ids: one a text, in order; None for a text that equals no description.
        match_rate: share of the texts that equal a description, in [0, 1].
        tree_version: the tree that the node IDs refer to.
    """

    node_ids: tuple[int | None, ...]
    match_rate: float
    tree_version: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """One node of the tree.

    Attributes:
        level: 0 (root) to 4 (leaf).
        parent_node_id: None for the root.
        description: unique within the level; empty for the root.
        item_count: items under the node when the tree was built.
        tree_version: the tree that the node IDs refer to.
    """

    node_id: int
    level: int
    parent_node_id: int | None
    description: str
    item_count: int
    tree_version: str


@dataclass(frozen=True, slots=True)
class Retrieved:
    """Candidates for one user, best first.

    Attributes:
        widened_to: nodes beyond the requested ones that gave candidates, in order.
        unknown_history_items: events whose item the retriever's export does not have.
    """

    candidates: tuple[Candidate, ...]
    widened_to: tuple[int, ...]
    unknown_history_items: int
    versions: Versions


@dataclass(frozen=True, slots=True)
class RetrievedRow:
    """The outcome of one query of a batch: a result, or the error that tells why there is none."""

    result: Retrieved | None
    error: SerendipError | None = None

    def require(self) -> Retrieved:
        """The result; raises the row's error if there is none."""
        if self.result is None:
            raise self.error if self.error is not None else NotFound("no result")
        return self.result


@dataclass(frozen=True, slots=True)
class RetrieverInfo:
    """What a retriever serves.

    Attributes:
        versions: of the current release.
        tree_versions: what a request may name, newest first.
        item_count: items of the export.
        fresh_item_count: items of the release's tree that are newer than the export.
        deleted_item_count: items of the export that the release's tree no longer has.
        withheld_item_count: items that the operator withholds now.
        max_history: events of a history that the model reads.
        dimensions: length of user and item vectors.
        attributes: what filters may name, with its type.
    """

    versions: Versions
    tree_versions: tuple[str, ...]
    item_count: int
    fresh_item_count: int
    deleted_item_count: int
    withheld_item_count: int
    max_history: int
    dimensions: int
    attributes: dict[str, AttributeType]


@dataclass(frozen=True, slots=True)
class PlannerLimits:
    """What requests to a planner server may be at most: see PlannerLimits in planner.proto."""

    context_items: int
    clusters: int
    excluded_nodes: int
    texts: int
    page_size: int
    frames: int
    image_bytes: int
    pixels: int
    video_bytes: int
    video_seconds: float
    request_bytes: int


@dataclass(frozen=True, slots=True)
class PlannerInfo:
    """What a planner server serves.

    Attributes:
        level: that plans name clusters at, 1 to 4.
        level_gap: levels above it at which two clusters must meet to be serendipitous.
        prompt_style: of the live model; empty if nothing is planned live.
        plan_count: plans in the store.
        cluster_count: clusters at the planning level.
        recommends: whether it serves Recommend as well.
        limits: None of a server that does not tell them.
    """

    versions: Versions
    level: int
    level_gap: int
    prompt_style: str
    plan_count: int
    cluster_count: int
    recommends: bool
    limits: PlannerLimits | None


@dataclass(frozen=True, slots=True)
class RecommendQuery:
    """One recommendation that is asked for; the fields are ``recommend``'s arguments."""

    history: History
    context_item_id: str
    k: int = 50
    constraint: Constraint | ConstraintName = "not_own"
    include_seen: bool = False
    deny_item_ids: Sequence[str] = ()
    clusters: int = 1
    merge: Merge | MergeName = "score"
    exclude_node_ids: Sequence[int] = ()
    min_score: float | None = None
    filters: Sequence[Filter] = ()
    max_per_leaf: int = 0


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The items, and why these.

    Attributes:
        candidates: best first; under QUOTA the clusters take turns, and scores may rise.
        plan: the plan that they follow.
        source: where the plan comes from; FALLBACK is a degraded answer.
        widened_to: nodes beyond the planned clusters asked for that gave candidates, in order.
        age_s: seconds since the plan was made; 0 if it was made for this call.
        left_out: clusters of the plan that was found which the options left out.
        unknown_history_items: events whose item the retriever's export does not have.
    """

    candidates: tuple[Candidate, ...]
    plan: Plan
    source: PlanSource | None
    widened_to: tuple[int, ...]
    versions: Versions
    age_s: float = 0.0
    left_out: int = 0
    unknown_history_items: int = 0


@dataclass(frozen=True, slots=True)
class RecommendationRow:
    """The outcome of one query of a batch: a result, or the error that tells why there is none."""

    result: Recommendation | None
    error: SerendipError | None = None

    def require(self) -> Recommendation:
        """The result; raises the row's error if there is none."""
        if self.result is None:
            raise self.error if self.error is not None else NotFound("no result")
        return self.result
