"""What the client's methods take and return, besides the border types of serendip.core.

Knows no message and no channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serendip.core import (
    AttributeType,
    Candidate,
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
class Recommendation:
    """The items, and why these.

    Attributes:
        candidates: best first.
        plan: the plan that they follow.
        source: where the plan comes from; FALLBACK is a degraded answer.
        widened_to: nodes beyond the plan's first cluster that gave candidates, in order.
    """

    candidates: tuple[Candidate, ...]
    plan: Plan
    source: PlanSource | None
    widened_to: tuple[int, ...]
    versions: Versions
