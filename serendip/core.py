"""The border types and the typed errors: what passes between the rooms of the house.

The way of the data, and where each error stands on it::

    parquet, media ──> catalog ──> tree ──> curation ──> planning ──> plans ─┐
            │ InvalidData   │ MediaError                  │                  ├─> release
            └───────────────┴──────────> retrieval ──> retriever ────────────┘      │
                                                 StorageError, CorruptArtifact ─────┤
    request ──> server ──> plan ──> retrieve ──> candidates                         │
        │ Unauthenticated, InvalidRequest, NotFound, WrongTree,                     │
        │ Overloaded, DeadlineSpent                                                 │
        └─ NotReady <────────────────────────────────────────────────── servers <───┘

This module knows no gRPC, no file format and no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

MAX_ID_BYTES = 256
MAX_PLANNED_CLUSTERS = 8
MAX_K = 1000
MAX_FILTERS = 16
MAX_DENIED = 10_000
MAX_FILTER_VALUES = 1000


# --- errors ------------------------------------------------------------------------------


class SerendipError(Exception):
    """An error that a user can act on.

    Attributes:
        field: what is wrong, as the user knows it: a column, a flag, a request's field.
        value: the offending value; shown shortened.
        remedy: what to do about it.
    """

    def __init__(self, message: str, *, field: str = "", value: object = None, remedy: str = ""):
        self.message = message
        self.field = field
        self.value = value
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [f"{self.field}: {self.message}" if self.field else self.message]
        if self.value is not None:
            shown = repr(self.value)
            parts.append(f"got {shown if len(shown) <= 120 else shown[:117] + '...'}")
        text = ", ".join(parts)
        return f"{text}. {self.remedy}" if self.remedy else text


class InvalidRequest(SerendipError):
    """A request, flag or setting that can never be served as it is."""


class InvalidData(InvalidRequest):
    """A table from outside breaks its schema.

    Attributes:
        row: index of the first offending row, or None where the table as a whole is wrong.
        reason: the message without the row.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        value: object = None,
        remedy: str = "",
        row: int | None = None,
    ):
        self.row = row
        self.reason = message
        where = message if row is None else f"row {row}: {message}"
        super().__init__(where, field=field, value=value, remedy=remedy)


class MediaError(InvalidRequest):
    """An image or a video that cannot be read within its bounds."""


class Unauthenticated(SerendipError):
    """A call without a token that the server knows; never says which token came."""


class NotFound(SerendipError):
    """An item, a node or an artefact that does not exist."""


class WrongTree(SerendipError):
    """A tree_version that is not open here: node IDs would mean something else."""


class Overloaded(SerendipError):
    """A bounded queue is full.

    Attributes:
        retry_after_s: seconds after which another try is welcome.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0):
        self.retry_after_s = retry_after_s
        super().__init__(message, remedy=f"Try again in {retry_after_s:g} s.")


class DeadlineSpent(SerendipError):
    """The caller's deadline passed before the work was done; the work is dropped."""


class NotReady(SerendipError):
    """A server, or the tier behind it, that cannot answer yet or any more."""


class CorruptArtifact(SerendipError):
    """An artefact on disk that is not what its manifest says, or of another format."""


class StorageError(SerendipError):
    """A folder that cannot be written: full, read-only, or not permitted."""


# --- border types ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """A catalogue entry.

    Attributes:
        item_id: unique, 1 to 256 bytes of UTF-8.
        title: shown to people and to the MLLM.
        text: further text; may be empty.
        thumbnail: an encoded JPEG or PNG, or the path of one; None if there is none.
        video: path of a video file; None if there is none.
        created_at: Unix time in milliseconds.
    """

    item_id: str
    title: str
    text: str = ""
    thumbnail: bytes | Path | None = None
    video: Path | None = None
    created_at: int = 0

    def __post_init__(self) -> None:
        check_id(self.item_id, "item_id")


@dataclass(frozen=True, slots=True)
class PlannedCluster:
    """A cluster of a plan: see PlannedCluster in protos/serendip/v1/common.proto."""

    node_id: int
    description: str
    score: float
    serendipitous: bool

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise ValueError(f"score of node {self.node_id} must be finite, got {self.score}")


class PlanSource(Enum):
    """Where a plan comes from."""

    STORE = "store"
    LIVE = "live"
    FALLBACK = "fallback"


class Constraint(Enum):
    """Which clusters may be planned for a context item.

    NOT_OWN is every cluster but its own; SIBLINGS only those that are serendipitous for it; NONE
    every cluster, though a stored plan never has the item's own.
    """

    NOT_OWN = "not_own"
    SIBLINGS = "siblings"
    NONE = "none"


class Merge(Enum):
    """How the candidates of several planned clusters become one list.

    SCORE is the best of their union; under QUOTA the clusters take turns.
    """

    SCORE = "score"
    QUOTA = "quota"


@dataclass(frozen=True, slots=True)
class Plan:
    """The ordered clusters chosen for one context item, best first.

    Attributes:
        own_node_id: the context item's own cluster at the planning level, None if unknown.
        reasoning: what the MLLM wrote before its answer.
        planned_at_ms: Unix time in milliseconds.
    """

    context_item_id: str
    clusters: tuple[PlannedCluster, ...]
    own_node_id: int | None
    reasoning: str
    tree_version: str
    planner_version: str
    planned_at_ms: int

    def __post_init__(self) -> None:
        nodes = [c.node_id for c in self.clusters]
        if len(set(nodes)) != len(nodes):
            raise ValueError(f"a plan names each cluster once, got {nodes}")
        if len(nodes) > MAX_PLANNED_CLUSTERS:
            raise ValueError(f"a plan has at most {MAX_PLANNED_CLUSTERS} clusters")


class Candidate(NamedTuple):
    """An item that the retriever returns; a tuple, which is made in a third of the time.

    Attributes:
        score: comparable between the candidates of one retrieval alone.
        node_id: the node it was taken from.
        widened: whether it lies in none of the requested nodes.
        fresh: whether it is newer than the export, and a stand-in was scored.
    """

    item_id: str
    score: float
    node_id: int
    widened: bool = False
    fresh: bool = False


class AttributeType(Enum):
    """The type of an attribute of the items, which filters may name."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    FLAG = "flag"
    TIMESTAMP = "timestamp"


AttributeValue = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on an attribute: see Filter in protos/serendip/v1/retriever.proto.

    Attributes:
        any_of, none_of: values of the attribute's type; empty: no such condition.
        at_least, at_most: closed bounds; None: none.
    """

    attribute: str
    any_of: Sequence[AttributeValue] = ()
    none_of: Sequence[AttributeValue] = ()
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        for name in ("any_of", "none_of"):
            values = getattr(self, name)
            if isinstance(values, str):  # a sequence of its letters otherwise
                raise InvalidRequest(
                    "must be a list",
                    field=f"filters.{name}",
                    value=values,
                    remedy=f"Write [{values!r}].",
                )
            object.__setattr__(self, name, tuple(values))
            check_length(getattr(self, name), f"filters.{name}", 0, MAX_FILTER_VALUES)
        bounds = [b for b in (self.at_least, self.at_most) if b is not None]
        if not (self.any_of or self.none_of or bounds):
            raise InvalidRequest(
                "sets no condition",
                field="filters",
                value=self.attribute,
                remedy="Set any_of, none_of, at_least or at_most.",
            )
        for bound in bounds:
            if not math.isfinite(bound):
                raise InvalidRequest(
                    "must be finite",
                    field="filters.at_least" if bound is self.at_least else "filters.at_most",
                    value=bound,
                    remedy="Leave out a bound that bounds nothing.",
                )


@dataclass(frozen=True, slots=True)
class RetrievalQuery:
    """One user's retrieval: see RetrieveRequest in protos/serendip/v1/retriever.proto.

    Attributes:
        history: item IDs, oldest first; all of them count as seen.
        satisfaction: one number in [0, 1] an event, or empty: all satisfied.
        allow_item_ids: only these may be returned; None: any.
        max_per_leaf: most candidates of one leaf; 0: no limit.
    """

    history: tuple[str, ...]
    node_ids: tuple[int, ...]
    k: int
    exclude_node_ids: tuple[int, ...] = ()
    widen_node_ids: tuple[int, ...] = ()
    satisfaction: tuple[float, ...] = ()
    deny_item_ids: tuple[str, ...] = ()
    include_seen: bool = False
    widening: bool = True
    filters: tuple[Filter, ...] = ()
    allow_item_ids: tuple[str, ...] | None = None
    max_per_leaf: int = 0
    require_known_history: bool = False

    def __post_init__(self) -> None:
        check_range(self.k, "k", 1, MAX_K)
        check_length(self.node_ids, "node_ids", 1, 64)
        check_length(self.exclude_node_ids, "exclude_node_ids", 0, 1024)
        check_length(self.widen_node_ids, "widen_node_ids", 0, 64)
        check_length(self.history, "history", 0, 10_000)
        check_length(self.deny_item_ids, "deny_item_ids", 0, MAX_DENIED)
        check_length(self.filters, "filters", 0, MAX_FILTERS)
        check_range(self.max_per_leaf, "max_per_leaf", 0, MAX_K)
        if self.allow_item_ids is not None:
            # An empty set could not be told from none on the wire.
            check_length(self.allow_item_ids, "allow_item_ids", 1, 10_000)
        for value in self.satisfaction:
            if not 0.0 <= value <= 1.0:  # also catches NaN
                raise InvalidRequest(
                    "must lie in [0, 1]",
                    field="history.satisfaction",
                    value=value,
                    remedy="Scale it to [0, 1], or leave it unset.",
                )
        if self.satisfaction and len(self.satisfaction) != len(self.history):
            raise InvalidRequest(
                f"must have one entry an event ({len(self.history)})",
                field="history.satisfaction",
                value=len(self.satisfaction),
                remedy="Send one for every event, or none.",
            )


@dataclass(frozen=True, slots=True)
class Retrieval:
    """What a retrieval found: at most k candidates, best first, and where it had to look."""

    candidates: tuple[Candidate, ...]
    widened_to: tuple[int, ...] = ()
    unknown_history_items: int = 0


@dataclass(frozen=True, slots=True)
class Versions:
    """Which artefacts an answer was made from; empty where one had no part in it."""

    tree_version: str = ""
    planner_version: str = ""
    plans_version: str = ""
    retriever_version: str = ""
    order_version: str = ""


@dataclass(frozen=True)
class Bounds:
    """Limits on media from outside; every decoder keeps them.

    Attributes:
        image_bytes, video_bytes: largest encoded size.
        pixels: largest width x height of an image or of a video frame.
        video_seconds: longest video.
    """

    image_bytes: int = 8 << 20
    video_bytes: int = 256 << 20
    pixels: int = 40_000_000
    video_seconds: float = 600.0


BOUNDS = Bounds()
# Of a request: who sends it waits for it, and nobody knows them.
REQUEST_BOUNDS = Bounds(video_bytes=16 << 20, video_seconds=60.0)


# --- checks at a border ------------------------------------------------------------------


def check_id(value: str, name: str) -> None:
    """Raises InvalidRequest unless ``value`` is 1 to 256 bytes of UTF-8 text."""
    if not isinstance(value, str) or not 1 <= len(value.encode()) <= MAX_ID_BYTES:
        raise InvalidRequest(
            f"must be 1 to {MAX_ID_BYTES} bytes of text",
            field=name,
            value=value,
            remedy="Send the catalogue's item_id.",
        )


def check_range(value: int, name: str, low: int, high: int) -> None:
    """Raises InvalidRequest unless low <= value <= high."""
    if not low <= value <= high:
        raise InvalidRequest(
            f"must lie in {low} to {high}",
            field=name,
            value=value,
            remedy=f"Set {name} to {low} to {high}.",
        )


def check_length(values: tuple[object, ...], name: str, low: int, high: int) -> None:
    """Raises InvalidRequest unless low <= len(values) <= high."""
    if not low <= len(values) <= high:
        raise InvalidRequest(
            f"must have {low} to {high} entries",
            field=name,
            value=len(values),
            remedy="Split the request." if len(values) > high else f"Name at least {low}.",
        )
