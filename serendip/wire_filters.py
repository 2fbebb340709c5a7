"""Filters and attributes between the protos and the border types of core: a part of wire.py.

Knows no other message, no channel and no artefact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from serendip.core import AttributeType, AttributeValue, Filter, InvalidRequest
from serendip.v1 import retriever_pb2


def filters_to_proto(filters: Iterable[Filter]) -> list[retriever_pb2.Filter]:
    """Raises TypeError for a value that is no attribute's."""
    return [
        retriever_pb2.Filter(
            attribute=f.attribute,
            any_of=[_value_to_proto(value) for value in f.any_of],
            none_of=[_value_to_proto(value) for value in f.none_of],
            at_least=f.at_least,
            at_most=f.at_most,
        )
        for f in filters
    ]


def filters_from_proto(messages: Sequence[retriever_pb2.Filter]) -> tuple[Filter, ...]:
    """Raises InvalidRequest, naming the field, for what Filter's comments call invalid."""
    filters = []
    for index, message in enumerate(messages):
        try:
            filters.append(
                Filter(
                    attribute=message.attribute,
                    any_of=_values_from_proto(message.any_of, "any_of"),
                    none_of=_values_from_proto(message.none_of, "none_of"),
                    at_least=message.at_least if message.HasField("at_least") else None,
                    at_most=message.at_most if message.HasField("at_most") else None,
                )
            )
        except InvalidRequest as e:
            field = e.field.replace("filters", f"filters[{index}]", 1)
            raise InvalidRequest(e.message, field=field, value=e.value, remedy=e.remedy) from None
    return tuple(filters)


def _value_to_proto(value: AttributeValue) -> retriever_pb2.AttributeValue:
    if isinstance(value, bool):  # which is an int as well
        return retriever_pb2.AttributeValue(flag=value)
    if isinstance(value, str):
        return retriever_pb2.AttributeValue(text=value)
    if isinstance(value, int):
        return retriever_pb2.AttributeValue(integer=value)
    return retriever_pb2.AttributeValue(number=value)


def _values_from_proto(
    messages: Sequence[retriever_pb2.AttributeValue], part: str
) -> tuple[AttributeValue, ...]:
    values: list[AttributeValue] = []
    for index, message in enumerate(messages):
        kind = message.WhichOneof("kind")
        if kind is None:
            raise InvalidRequest(
                "is not set",
                field=f"filters.{part}[{index}]",
                remedy="Set text, integer, number or flag.",
            )
        values.append(getattr(message, kind))
    return tuple(values)


_TYPE_TO_PROTO = {
    AttributeType.TEXT: retriever_pb2.ATTRIBUTE_TYPE_TEXT,
    AttributeType.INTEGER: retriever_pb2.ATTRIBUTE_TYPE_INTEGER,
    AttributeType.NUMBER: retriever_pb2.ATTRIBUTE_TYPE_NUMBER,
    AttributeType.FLAG: retriever_pb2.ATTRIBUTE_TYPE_FLAG,
    AttributeType.TIMESTAMP: retriever_pb2.ATTRIBUTE_TYPE_TIMESTAMP,
}
_TYPE_FROM_PROTO = {number: type_ for type_, number in _TYPE_TO_PROTO.items()}


def attributes_to_proto(types: Mapping[str, AttributeType]) -> list[retriever_pb2.Attribute]:
    return [
        retriever_pb2.Attribute(name=name, type=_TYPE_TO_PROTO[type_])
        for name, type_ in types.items()
    ]


def attributes_from_proto(
    messages: Iterable[retriever_pb2.Attribute],
) -> dict[str, AttributeType]:
    """Types by name; those of a type that a newer server may name are left out."""
    return {m.name: _TYPE_FROM_PROTO[m.type] for m in messages if m.type in _TYPE_FROM_PROTO}
