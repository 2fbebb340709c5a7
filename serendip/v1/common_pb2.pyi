from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Versions(_message.Message):
    __slots__ = ("tree_version", "planner_version", "plans_version", "retriever_version", "order_version")
    TREE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PLANNER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PLANS_VERSION_FIELD_NUMBER: _ClassVar[int]
    RETRIEVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    ORDER_VERSION_FIELD_NUMBER: _ClassVar[int]
    tree_version: str
    planner_version: str
    plans_version: str
    retriever_version: str
    order_version: str
    def __init__(self, tree_version: _Optional[str] = ..., planner_version: _Optional[str] = ..., plans_version: _Optional[str] = ..., retriever_version: _Optional[str] = ..., order_version: _Optional[str] = ...) -> None: ...

class HistoryItem(_message.Message):
    __slots__ = ("item_id", "timestamp_ms", "satisfaction")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_MS_FIELD_NUMBER: _ClassVar[int]
    SATISFACTION_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    timestamp_ms: int
    satisfaction: float
    def __init__(self, item_id: _Optional[str] = ..., timestamp_ms: _Optional[int] = ..., satisfaction: _Optional[float] = ...) -> None: ...

class PlannedCluster(_message.Message):
    __slots__ = ("node_id", "description", "score", "serendipitous")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SERENDIPITOUS_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    description: str
    score: float
    serendipitous: bool
    def __init__(self, node_id: _Optional[int] = ..., description: _Optional[str] = ..., score: _Optional[float] = ..., serendipitous: _Optional[bool] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("item_id", "score", "node_id", "widened", "fresh")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    WIDENED_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    score: float
    node_id: int
    widened: bool
    fresh: bool
    def __init__(self, item_id: _Optional[str] = ..., score: _Optional[float] = ..., node_id: _Optional[int] = ..., widened: _Optional[bool] = ..., fresh: _Optional[bool] = ...) -> None: ...
