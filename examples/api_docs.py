"""Writes docs/api.md: every call, message and field of the protos, in their own words.

    python examples/api_docs.py        (./build.sh protos, ./build.sh docs)

The compiler says what there is and which comment stands where (a descriptor set with source info);
nothing here reads a .proto's text.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

ROOT = Path(__file__).parents[1]
PATH = ROOT / "docs" / "api.md"
# In the order in which somebody who calls them reads.
FILES = tuple(
    f"serendip/v1/{name}.proto" for name in ("recommender", "planner", "retriever", "common")
)
INTRODUCTION = """# The API

Every call, message and field, in the words of [protos/serendip/v1](../protos/serendip/v1), whose
comments this page is made of (`./build.sh protos` or `./build.sh docs`; a test holds it to them).
All calls are unary. Both servers answer [reflection](grpcurl.md) and `grpc.health.v1.Health` too.
"""
STATUSES = """## Statuses

A call ends with OK or one of these. In a call of many rows (Plan, Resolve, RetrieveBatch,
RecommendBatch) each row has its own, as a `google.rpc.Status`; the call fails only where the
request as a whole is wrong.

| status | when | what goes with it |
|---|---|---|
"""
STATUS_ROWS = (
    (
        "INVALID_ARGUMENT",
        "the request can never be served as it is",
        "`google.rpc.BadRequest`, which names the field",
    ),
    ("NOT_FOUND", "an item or a node that does not exist", ""),
    (
        "FAILED_PRECONDITION",
        "a tree_version that is not open: node IDs would mean something else",
        "in the message, the versions that are",
    ),
    (
        "RESOURCE_EXHAUSTED",
        "a queue is full: try again when told to; or the request is too large: never",
        "`google.rpc.RetryInfo` and `grpc-retry-pushback-ms`, if a queue is full",
    ),
    ("DEADLINE_EXCEEDED", "the caller's deadline passed; the work is dropped", ""),
    ("UNAVAILABLE", "not ready, stopping, or the tier behind is away: the one to retry", ""),
    ("UNAUTHENTICATED", "the server wants a bearer token, and this is none of its own", ""),
    ("UNIMPLEMENTED", "no such call here: Recommender, where no retriever was named", ""),
    ("INTERNAL", "a fault of the server", "an error ID, which the server's log has"),
)
_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in FieldDescriptorProto.Type.items()
    if name not in ("TYPE_MESSAGE", "TYPE_ENUM", "TYPE_GROUP")
}
_OUTSIDE = {
    "google.protobuf.Timestamp": "https://protobuf.dev/reference/protobuf/google.protobuf/#timestamp",
    "google.protobuf.Duration": "https://protobuf.dev/reference/protobuf/google.protobuf/#duration",
    "google.rpc.Status": "../protos/google/rpc/status.proto",
}
# Where what stands inside what, as a path of source info has it.
_MESSAGE = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER
_ENUM = FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER
_SERVICE = FileDescriptorProto.SERVICE_FIELD_NUMBER
_FIELD = DescriptorProto.FIELD_FIELD_NUMBER
_VALUE = EnumDescriptorProto.VALUE_FIELD_NUMBER
_METHOD = ServiceDescriptorProto.METHOD_FIELD_NUMBER


@dataclass(frozen=True)
class File:
    """A .proto, with the comment that stands before each path of it."""

    proto: FileDescriptorProto
    comments: dict[tuple[int, ...], str]

    def said(self, *path: int) -> str:
        """The comment of a path, paragraphs kept."""
        return self.comments.get(path, "")


def compile_protos(folder: Path) -> list[File]:
    """The files, compiled. Raises RuntimeError if the compiler refuses them."""
    with tempfile.TemporaryDirectory() as made:
        out = Path(made) / "set"
        options = [f"-I{folder}", "--include_source_info", f"--descriptor_set_out={out}"]
        protoc = [sys.executable, "-m", "grpc_tools.protoc", *options, *FILES]
        run = subprocess.run(protoc, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(run.stderr)
        found = FileDescriptorSet.FromString(out.read_bytes())
    by_name = {file.name: file for file in found.file}
    return [File(by_name[name], _comments(by_name[name])) for name in FILES]


def _comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    return {
        tuple(place.path): "\n".join(
            line.strip() for line in place.leading_comments.strip().splitlines()
        )
        for place in file.source_code_info.location
        if place.HasField("leading_comments")
    }


def text(folder: Path = ROOT / "protos") -> str:
    """The page."""
    files = compile_protos(folder)
    services = [(file, at, one) for file in files for at, one in enumerate(file.proto.service)]
    parts = [INTRODUCTION, *_contents(services)]
    for file, at, service in services:
        parts += _service(file, at, service)
    rows = (f"| `{status}` | {when} | {what} |\n" for status, when, what in STATUS_ROWS)
    parts.append(STATUSES + "".join(rows))
    parts.append("## Messages\n\nIn the order of the files; a type links to where it is told.\n")
    for file in files:
        parts += _types(file)
    return "\n".join(parts).rstrip() + "\n"


def _contents(
    services: Sequence[tuple[File, int, ServiceDescriptorProto]],
) -> Iterator[str]:
    yield "| service | calls |\n|---|---|"
    for _, _, service in services:
        calls = ", ".join(f"[{m.name}](#{_anchor(_title(service, m))})" for m in service.method)
        yield f"| [{service.name}](#{_anchor(service.name)}) | {calls} |"
    yield ""


def _service(file: File, at: int, service: ServiceDescriptorProto) -> Iterator[str]:
    yield f"## {service.name}\n\n`{file.proto.package}.{service.name}`\n"
    yield f"{file.said(_SERVICE, at)}\n"
    for number, method in enumerate(service.method):
        said = file.said(_SERVICE, at, _METHOD, number)
        request, response = (_link(name) for name in (method.input_type, method.output_type))
        yield f"### {_title(service, method)}\n\n{request} → {response}\n\n{said}\n"


def _title(service: ServiceDescriptorProto, method: MethodDescriptorProto) -> str:
    return f"{service.name}.{method.name}"


def _types(file: File) -> Iterator[str]:
    """Messages and enums as they stand in their file."""
    lines = {tuple(p.path): p.span[0] for p in file.proto.source_code_info.location}
    told = [((_MESSAGE, at), _message(file, at, m)) for at, m in enumerate(file.proto.message_type)]
    told += [((_ENUM, at), _enum(file, at, e)) for at, e in enumerate(file.proto.enum_type)]
    for _, section in sorted(told, key=lambda one: lines[one[0]]):
        yield from section


def _message(file: File, number: int, message: DescriptorProto) -> Iterator[str]:
    yield f"### {message.name}\n\n{file.said(_MESSAGE, number)}\n"
    if not message.field:
        return
    yield "| field | type | |\n|---|---|---|"
    for at, field in enumerate(message.field):
        said = _cell(file.said(_MESSAGE, number, _FIELD, at))
        yield f"| `{field.name}` = {field.number} | {_type(message, field)} | {said} |"
    yield ""


def _enum(file: File, number: int, enum: EnumDescriptorProto) -> Iterator[str]:
    yield f"### {enum.name}\n\n{file.said(_ENUM, number)}\n\n| value | |\n|---|---|"
    for at, value in enumerate(enum.value):
        said = _cell(file.said(_ENUM, number, _VALUE, at))
        yield f"| `{value.name}` = {value.number} | {said} |"
    yield ""


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    name = _SCALARS.get(field.type) or _link(field.type_name)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    if field.proto3_optional:
        return f"optional {name}"
    if field.HasField("oneof_index"):
        return f"{name}, one of {message.oneof_decl[field.oneof_index].name}"
    return name


def _link(type_name: str) -> str:
    full = type_name.removeprefix(".")
    short = full.rsplit(".", 1)[-1]
    if full in _OUTSIDE:
        return f"[{full}]({_OUTSIDE[full]})"
    return f"[{short}](#{_anchor(short)})"


def _anchor(title: str) -> str:
    """A heading's anchor, as GitHub makes it of letters and full stops."""
    return title.lower().replace(".", "")


def _cell(said: str) -> str:
    return " ".join(said.split()).replace("|", "\\|")


if __name__ == "__main__":
    PATH.write_text(text())
    print(PATH)
