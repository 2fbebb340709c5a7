import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.rpc import status_pb2 as _status_pb2
from serendip.v1 import common_pb2 as _common_pb2
from serendip.v1 import planner_pb2 as _planner_pb2
from serendip.v1 import retriever_pb2 as _retriever_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Merge(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MERGE_UNSPECIFIED: _ClassVar[Merge]
    MERGE_SCORE: _ClassVar[Merge]
    MERGE_QUOTA: _ClassVar[Merge]
MERGE_UNSPECIFIED: Merge
MERGE_SCORE: Merge
MERGE_QUOTA: Merge

class RecommendRequest(_message.Message):
    __slots__ = ("history", "context_item_id", "k", "constraint", "include_seen", "deny_item_ids", "clusters", "merge", "exclude_node_ids", "min_score", "filters", "max_per_leaf")
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SEEN_FIELD_NUMBER: _ClassVar[int]
    DENY_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    MERGE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_PER_LEAF_FIELD_NUMBER: _ClassVar[int]
    history: _containers.RepeatedCompositeFieldContainer[_common_pb2.HistoryItem]
    context_item_id: str
    k: int
    constraint: _planner_pb2.Constraint
    include_seen: bool
    deny_item_ids: _containers.RepeatedScalarFieldContainer[str]
    clusters: int
    merge: Merge
    exclude_node_ids: _containers.RepeatedScalarFieldContainer[int]
    min_score: float
    filters: _containers.RepeatedCompositeFieldContainer[_retriever_pb2.Filter]
    max_per_leaf: int
    def __init__(self, history: _Optional[_Iterable[_Union[_common_pb2.HistoryItem, _Mapping]]] = ..., context_item_id: _Optional[str] = ..., k: _Optional[int] = ..., constraint: _Optional[_Union[_planner_pb2.Constraint, str]] = ..., include_seen: _Optional[bool] = ..., deny_item_ids: _Optional[_Iterable[str]] = ..., clusters: _Optional[int] = ..., merge: _Optional[_Union[Merge, str]] = ..., exclude_node_ids: _Optional[_Iterable[int]] = ..., min_score: _Optional[float] = ..., filters: _Optional[_Iterable[_Union[_retriever_pb2.Filter, _Mapping]]] = ..., max_per_leaf: _Optional[int] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("candidates", "plan", "source", "widened_to", "versions", "age", "left_out", "unknown_history_items")
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    WIDENED_TO_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_HISTORY_ITEMS_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[_common_pb2.Candidate]
    plan: _planner_pb2.Plan
    source: _planner_pb2.PlanSource
    widened_to: _containers.RepeatedScalarFieldContainer[int]
    versions: _common_pb2.Versions
    age: _duration_pb2.Duration
    left_out: int
    unknown_history_items: int
    def __init__(self, candidates: _Optional[_Iterable[_Union[_common_pb2.Candidate, _Mapping]]] = ..., plan: _Optional[_Union[_planner_pb2.Plan, _Mapping]] = ..., source: _Optional[_Union[_planner_pb2.PlanSource, str]] = ..., widened_to: _Optional[_Iterable[int]] = ..., versions: _Optional[_Union[_common_pb2.Versions, _Mapping]] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., left_out: _Optional[int] = ..., unknown_history_items: _Optional[int] = ...) -> None: ...

class RecommendBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RecommendRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RecommendRequest, _Mapping]]] = ...) -> None: ...

class RecommendBatchResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[RecommendRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[RecommendRow, _Mapping]]] = ...) -> None: ...

class RecommendRow(_message.Message):
    __slots__ = ("status", "response")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    status: _status_pb2.Status
    response: RecommendResponse
    def __init__(self, status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., response: _Optional[_Union[RecommendResponse, _Mapping]] = ...) -> None: ...
