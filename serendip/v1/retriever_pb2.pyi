from google.rpc import status_pb2 as _status_pb2
from serendip.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttributeType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ATTRIBUTE_TYPE_UNSPECIFIED: _ClassVar[AttributeType]
    ATTRIBUTE_TYPE_TEXT: _ClassVar[AttributeType]
    ATTRIBUTE_TYPE_INTEGER: _ClassVar[AttributeType]
    ATTRIBUTE_TYPE_NUMBER: _ClassVar[AttributeType]
    ATTRIBUTE_TYPE_FLAG: _ClassVar[AttributeType]
    ATTRIBUTE_TYPE_TIMESTAMP: _ClassVar[AttributeType]
ATTRIBUTE_TYPE_UNSPECIFIED: AttributeType
ATTRIBUTE_TYPE_TEXT: AttributeType
ATTRIBUTE_TYPE_INTEGER: AttributeType
ATTRIBUTE_TYPE_NUMBER: AttributeType
ATTRIBUTE_TYPE_FLAG: AttributeType
ATTRIBUTE_TYPE_TIMESTAMP: AttributeType

class RetrieveRequest(_message.Message):
    __slots__ = ("history", "node_ids", "exclude_node_ids", "widen_node_ids", "tree_version", "k", "include_seen", "deny_item_ids", "no_widening", "filters", "allow_item_ids", "max_per_leaf", "require_known_history")
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    WIDEN_NODE_IDS_FIELD_NUMBER: _ClassVar[int]
    TREE_VERSION_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SEEN_FIELD_NUMBER: _ClassVar[int]
    DENY_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    NO_WIDENING_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_PER_LEAF_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_KNOWN_HISTORY_FIELD_NUMBER: _ClassVar[int]
    history: _containers.RepeatedCompositeFieldContainer[_common_pb2.HistoryItem]
    node_ids: _containers.RepeatedScalarFieldContainer[int]
    exclude_node_ids: _containers.RepeatedScalarFieldContainer[int]
    widen_node_ids: _containers.RepeatedScalarFieldContainer[int]
    tree_version: str
    k: int
    include_seen: bool
    deny_item_ids: _containers.RepeatedScalarFieldContainer[str]
    no_widening: bool
    filters: _containers.RepeatedCompositeFieldContainer[Filter]
    allow_item_ids: _containers.RepeatedScalarFieldContainer[str]
    max_per_leaf: int
    require_known_history: bool
    def __init__(self, history: _Optional[_Iterable[_Union[_common_pb2.HistoryItem, _Mapping]]] = ..., node_ids: _Optional[_Iterable[int]] = ..., exclude_node_ids: _Optional[_Iterable[int]] = ..., widen_node_ids: _Optional[_Iterable[int]] = ..., tree_version: _Optional[str] = ..., k: _Optional[int] = ..., include_seen: _Optional[bool] = ..., deny_item_ids: _Optional[_Iterable[str]] = ..., no_widening: _Optional[bool] = ..., filters: _Optional[_Iterable[_Union[Filter, _Mapping]]] = ..., allow_item_ids: _Optional[_Iterable[str]] = ..., max_per_leaf: _Optional[int] = ..., require_known_history: _Optional[bool] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("attribute", "any_of", "none_of", "at_least", "at_most")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    ANY_OF_FIELD_NUMBER: _ClassVar[int]
    NONE_OF_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    AT_MOST_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    any_of: _containers.RepeatedCompositeFieldContainer[AttributeValue]
    none_of: _containers.RepeatedCompositeFieldContainer[AttributeValue]
    at_least: float
    at_most: float
    def __init__(self, attribute: _Optional[str] = ..., any_of: _Optional[_Iterable[_Union[AttributeValue, _Mapping]]] = ..., none_of: _Optional[_Iterable[_Union[AttributeValue, _Mapping]]] = ..., at_least: _Optional[float] = ..., at_most: _Optional[float] = ...) -> None: ...

class AttributeValue(_message.Message):
    __slots__ = ("text", "integer", "number", "flag")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    text: str
    integer: int
    number: float
    flag: bool
    def __init__(self, text: _Optional[str] = ..., integer: _Optional[int] = ..., number: _Optional[float] = ..., flag: _Optional[bool] = ...) -> None: ...

class RetrieveResponse(_message.Message):
    __slots__ = ("candidates", "widened_to", "unknown_history_items", "versions")
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    WIDENED_TO_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_HISTORY_ITEMS_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[_common_pb2.Candidate]
    widened_to: _containers.RepeatedScalarFieldContainer[int]
    unknown_history_items: int
    versions: _common_pb2.Versions
    def __init__(self, candidates: _Optional[_Iterable[_Union[_common_pb2.Candidate, _Mapping]]] = ..., widened_to: _Optional[_Iterable[int]] = ..., unknown_history_items: _Optional[int] = ..., versions: _Optional[_Union[_common_pb2.Versions, _Mapping]] = ...) -> None: ...

class RetrieveBatchRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RetrieveRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[RetrieveRequest, _Mapping]]] = ...) -> None: ...

class RetrieveBatchResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[RetrieveRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[RetrieveRow, _Mapping]]] = ...) -> None: ...

class RetrieveRow(_message.Message):
    __slots__ = ("status", "response")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    status: _status_pb2.Status
    response: RetrieveResponse
    def __init__(self, status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., response: _Optional[_Union[RetrieveResponse, _Mapping]] = ...) -> None: ...

class RetrieverGetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RetrieverGetInfoResponse(_message.Message):
    __slots__ = ("versions", "tree_versions", "item_count", "max_history", "dimensions", "attributes", "fresh_item_count", "deleted_item_count", "withheld_item_count")
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    TREE_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    MAX_HISTORY_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    FRESH_ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    DELETED_ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_ITEM_COUNT_FIELD_NUMBER: _ClassVar[int]
    versions: _common_pb2.Versions
    tree_versions: _containers.RepeatedScalarFieldContainer[str]
    item_count: int
    max_history: int
    dimensions: int
    attributes: _containers.RepeatedCompositeFieldContainer[Attribute]
    fresh_item_count: int
    deleted_item_count: int
    withheld_item_count: int
    def __init__(self, versions: _Optional[_Union[_common_pb2.Versions, _Mapping]] = ..., tree_versions: _Optional[_Iterable[str]] = ..., item_count: _Optional[int] = ..., max_history: _Optional[int] = ..., dimensions: _Optional[int] = ..., attributes: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., fresh_item_count: _Optional[int] = ..., deleted_item_count: _Optional[int] = ..., withheld_item_count: _Optional[int] = ...) -> None: ...

class Attribute(_message.Message):
    __slots__ = ("name", "type")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: AttributeType
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[AttributeType, str]] = ...) -> None: ...
