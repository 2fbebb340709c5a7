from serendip.v1 import common_pb2 as _common_pb2
from serendip.v1 import planner_pb2 as _planner_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecommendRequest(_message.Message):
    __slots__ = ("history", "context_item_id", "k", "constraint", "include_seen", "deny_item_ids")
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SEEN_FIELD_NUMBER: _ClassVar[int]
    DENY_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    history: _containers.RepeatedCompositeFieldContainer[_common_pb2.HistoryItem]
    context_item_id: str
    k: int
    constraint: _planner_pb2.Constraint
    include_seen: bool
    deny_item_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, history: _Optional[_Iterable[_Union[_common_pb2.HistoryItem, _Mapping]]] = ..., context_item_id: _Optional[str] = ..., k: _Optional[int] = ..., constraint: _Optional[_Union[_planner_pb2.Constraint, str]] = ..., include_seen: _Optional[bool] = ..., deny_item_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("candidates", "plan", "source", "widened_to", "versions")
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    WIDENED_TO_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[_common_pb2.Candidate]
    plan: _planner_pb2.Plan
    source: _planner_pb2.PlanSource
    widened_to: _containers.RepeatedScalarFieldContainer[int]
    versions: _common_pb2.Versions
    def __init__(self, candidates: _Optional[_Iterable[_Union[_common_pb2.Candidate, _Mapping]]] = ..., plan: _Optional[_Union[_planner_pb2.Plan, _Mapping]] = ..., source: _Optional[_Union[_planner_pb2.PlanSource, str]] = ..., widened_to: _Optional[_Iterable[int]] = ..., versions: _Optional[_Union[_common_pb2.Versions, _Mapping]] = ...) -> None: ...
