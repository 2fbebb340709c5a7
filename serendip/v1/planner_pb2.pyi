import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from serendip.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PlanSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLAN_SOURCE_UNSPECIFIED: _ClassVar[PlanSource]
    PLAN_SOURCE_STORE: _ClassVar[PlanSource]
    PLAN_SOURCE_LIVE: _ClassVar[PlanSource]
    PLAN_SOURCE_FALLBACK: _ClassVar[PlanSource]

class Constraint(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONSTRAINT_UNSPECIFIED: _ClassVar[Constraint]
    CONSTRAINT_NOT_OWN: _ClassVar[Constraint]
    CONSTRAINT_SIBLINGS: _ClassVar[Constraint]
    CONSTRAINT_NONE: _ClassVar[Constraint]
PLAN_SOURCE_UNSPECIFIED: PlanSource
PLAN_SOURCE_STORE: PlanSource
PLAN_SOURCE_LIVE: PlanSource
PLAN_SOURCE_FALLBACK: PlanSource
CONSTRAINT_UNSPECIFIED: Constraint
CONSTRAINT_NOT_OWN: Constraint
CONSTRAINT_SIBLINGS: Constraint
CONSTRAINT_NONE: Constraint

class Plan(_message.Message):
    __slots__ = ("context_item_id", "clusters", "own_node_id", "reasoning", "tree_version", "planner_version", "planned_at")
    CONTEXT_ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    OWN_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    TREE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PLANNER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PLANNED_AT_FIELD_NUMBER: _ClassVar[int]
    context_item_id: str
    clusters: _containers.RepeatedCompositeFieldContainer[_common_pb2.PlannedCluster]
    own_node_id: int
    reasoning: str
    tree_version: str
    planner_version: str
    planned_at: _timestamp_pb2.Timestamp
    def __init__(self, context_item_id: _Optional[str] = ..., clusters: _Optional[_Iterable[_Union[_common_pb2.PlannedCluster, _Mapping]]] = ..., own_node_id: _Optional[int] = ..., reasoning: _Optional[str] = ..., tree_version: _Optional[str] = ..., planner_version: _Optional[str] = ..., planned_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("context_item_ids", "k", "tree_version", "constraint", "exclude_node_ids", "min_score", "no_reasoning")
    CONTEXT_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    TREE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    NO_REASONING_FIELD_NUMBER: _ClassVar[int]
    context_item_ids: _containers.RepeatedScalarFieldContainer[str]
    k: int
    tree_version: str
    constraint: Constraint
    exclude_node_ids: _containers.RepeatedScalarFieldContainer[int]
    min_score: float
    no_reasoning: bool
    def __init__(self, context_item_ids: _Optional[_Iterable[str]] = ..., k: _Optional[int] = ..., tree_version: _Optional[str] = ..., constraint: _Optional[_Union[Constraint, str]] = ..., exclude_node_ids: _Optional[_Iterable[int]] = ..., min_score: _Optional[float] = ..., no_reasoning: _Optional[bool] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[PlanRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[PlanRow, _Mapping]]] = ...) -> None: ...

class PlanRow(_message.Message):
    __slots__ = ("status", "plan", "source", "age", "versions", "left_out")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    status: _status_pb2.Status
    plan: Plan
    source: PlanSource
    age: _duration_pb2.Duration
    versions: _common_pb2.Versions
    left_out: int
    def __init__(self, status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., source: _Optional[_Union[PlanSource, str]] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., versions: _Optional[_Union[_common_pb2.Versions, _Mapping]] = ..., left_out: _Optional[int] = ...) -> None: ...

class PlanContentRequest(_message.Message):
    __slots__ = ("title", "text", "thumbnail", "frames", "k", "tree_version", "exclude_node_ids", "video")
    TITLE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    TREE_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    VIDEO_FIELD_NUMBER: _ClassVar[int]
    title: str
    text: str
    thumbnail: bytes
    frames: _containers.RepeatedScalarFieldContainer[bytes]
    k: int
    tree_version: str
    exclude_node_ids: _containers.RepeatedScalarFieldContainer[int]
    video: bytes
    def __init__(self, title: _Optional[str] = ..., text: _Optional[str] = ..., thumbnail: _Optional[bytes] = ..., frames: _Optional[_Iterable[bytes]] = ..., k: _Optional[int] = ..., tree_version: _Optional[str] = ..., exclude_node_ids: _Optional[_Iterable[int]] = ..., video: _Optional[bytes] = ...) -> None: ...

class PlanContentResponse(_message.Message):
    __slots__ = ("plan", "versions")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    plan: Plan
    versions: _common_pb2.Versions
    def __init__(self, plan: _Optional[_Union[Plan, _Mapping]] = ..., versions: _Optional[_Union[_common_pb2.Versions, _Mapping]] = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("texts", "tree_version")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    TREE_VERSION_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    tree_version: str
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., tree_version: _Optional[str] = ...) -> None: ...

class ResolveResponse(_message.Message):
    __slots__ = ("rows", "match_rate", "tree_version")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MATCH_RATE_FIELD_NUMBER: _ClassVar[int]
    TREE_VERSION_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[ResolveRow]
    match_rate: float
    tree_version: str
    def __init__(self, rows: _Optional[_Iterable[_Union[ResolveRow, _Mapping]]] = ..., match_rate: _Optional[float] = ..., tree_version: _Optional[str] = ...) -> None: ...

class ResolveRow(_message.Message):
    __slots__ = ("status", "node_id")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    status: _status_pb2.Status
    node_id: int
    def __init__(self, status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., node_id: _Optional[int] = ...) -> None: ...

class ListClustersRequest(_message.Message):
    __slots__ = ("level", "parent_node_id", "page_size", "page_token", "query")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    PARENT_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    level: int
    parent_node_id: int
    page_size: int
    page_token: str
    query: str
    def __init__(self, level: _Optional[int] = ..., parent_node_id: _Optional[int] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., query: _Optional[str] = ...) -> None: ...

class ListClustersResponse(_message.Message):
    __slots__ = ("clusters", "next_page_token", "tree_version")
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TREE_VERSION_FIELD_NUMBER: _ClassVar[int]
    clusters: _containers.RepeatedCompositeFieldContainer[Cluster]
    next_page_token: str
    tree_version: str
    def __init__(self, clusters: _Optional[_Iterable[_Union[Cluster, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., tree_version: _Optional[str] = ...) -> None: ...

class Cluster(_message.Message):
    __slots__ = ("node_id", "level", "parent_node_id", "description", "item_count")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    PARENT_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    level: int
    parent_node_id: int
    description: str
    item_count: int
    def __init__(self, node_id: _Optional[int] = ..., level: _Optional[int] = ..., parent_node_id: _Optional[int] = ..., description: _Optional[str] = ..., item_count: _Optional[int] = ...) -> None: ...

class GetClusterRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    def __init__(self, node_id: _Optional[int] = ...) -> None: ...

class GetClusterResponse(_message.Message):
    __slots__ = ("cluster", "tree_version")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    TREE_VERSION_FIELD_NUMBER: _ClassVar[int]
    cluster: Cluster
    tree_version: str
    def __init__(self, cluster: _Optional[_Union[Cluster, _Mapping]] = ..., tree_version: _Optional[str] = ...) -> None: ...

class PlannerGetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PlannerGetInfoResponse(_message.Message):
    __slots__ = ("versions", "level", "level_gap", "prompt_style", "plan_count", "cluster_count", "limits", "recommends")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    LEVEL_GAP_FIELD_NUMBER: _ClassVar[int]
    PROMPT_STYLE_FIELD_NUMBER: _ClassVar[int]
    PLAN_COUNT_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_COUNT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    RECOMMENDS_FIELD_NUMBER: _ClassVar[int]
    versions: _common_pb2.Versions
    level: int
    level_gap: int
    prompt_style: str
    plan_count: int
    cluster_count: int
    limits: PlannerLimits
    recommends: bool
    def __init__(self, versions: _Optional[_Union[_common_pb2.Versions, _Mapping]] = ..., level: _Optional[int] = ..., level_gap: _Optional[int] = ..., prompt_style: _Optional[str] = ..., plan_count: _Optional[int] = ..., cluster_count: _Optional[int] = ..., limits: _Optional[_Union[PlannerLimits, _Mapping]] = ..., recommends: _Optional[bool] = ...) -> None: ...

class PlannerLimits(_message.Message):
    __slots__ = ("context_items", "clusters", "excluded_nodes", "texts", "page_size", "frames", "image_bytes", "pixels", "video_bytes", "video_seconds", "request_bytes")
    CONTEXT_ITEMS_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_NODES_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    VIDEO_BYTES_FIELD_NUMBER: _ClassVar[int]
    VIDEO_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
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
    def __init__(self, context_items: _Optional[int] = ..., clusters: _Optional[int] = ..., excluded_nodes: _Optional[int] = ..., texts: _Optional[int] = ..., page_size: _Optional[int] = ..., frames: _Optional[int] = ..., image_bytes: _Optional[int] = ..., pixels: _Optional[int] = ..., video_bytes: _Optional[int] = ..., video_seconds: _Optional[float] = ..., request_bytes: _Optional[int] = ...) -> None: ...
