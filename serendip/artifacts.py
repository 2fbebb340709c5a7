"""Every on-disk format: publish, open, verify, current.

An offline stage publishes one artefact, ``<root>/<kind>/<version>/``, whose ``manifest.json``
is written last: without a manifest the version does not exist. The version is derived from
what the artefact is made of (format, config, input versions), so the same stage on the same
inputs finds its work done. ``<root>/<kind>/current`` names the current version and is
replaced atomically.

This module knows nothing of what a kind's files mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serendip.core import CorruptArtifact, InvalidRequest, NotFound

KINDS = ("tree", "pairs", "planner", "plans", "retriever", "release", "report")

# Raised when the files of a kind change their meaning; readers refuse any other.
FORMATS: Mapping[str, int] = dict.fromkeys(KINDS, 1) | {"planner": 2}

MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True)
class Artifact:
    """A published version: its folder and its manifest.

    Attributes:
        log_until: Unix time in ms of the latest log event that any input has seen; None if
            the artefact was made from no log.
    """

    kind: str
    version: str
    path: Path
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    files: Mapping[str, str]
    rows: Mapping[str, int]
    log_until: int | None
    facts: Mapping[str, Any]

    def file(self, name: str) -> Path:
        """Path of one of the artefact's files. Raises CorruptArtifact if it has none such."""
        if name not in self.files:
            raise CorruptArtifact(
                "the manifest names no such file",
                field=f"{self.kind}/{self.version}",
                value=name,
                remedy="Publish the artefact again.",
            )
        return self.path / name


@dataclass
class Draft:
    """An artefact in the making: write files under ``path``, then fill the manifest's facts.

    Attributes:
        rows: row counts by file name.
        facts: further figures for the manifest (JSON values).
        log_until: as Artifact's; a stage that finds it on the way sets it.
    """

    kind: str
    version: str
    path: Path
    rows: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    log_until: int | None = None


def version_of(kind: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """12 hexadecimal digits that identify an artefact by what it is made of."""
    key = {"kind": kind, "format": FORMATS[kind], "config": config, "inputs": inputs}
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces ``path`` by ``data``; a reader sees the old bytes or the new, never a mixture."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    partial.replace(path)


def check_made_from(artifact: Artifact, inputs: Mapping[str, str]) -> None:
    """Raises InvalidRequest unless the artefact was made from these inputs.

    Current artefacts may be of different makings: the tree of a new catalogue beside the pairs of
    the old one, another seed's data. What a stage reads must belong together.
    """
    for kind, version in inputs.items():
        if artifact.inputs.get(kind) != version:
            raise InvalidRequest(
                f"was made from {kind} {artifact.inputs.get(kind)}, current is {version}",
                field=f"{artifact.kind}/{artifact.version}",
                remedy=f"Run {_STAGE[artifact.kind]} again, with the same configuration.",
            )


class Artifacts:
    """The artefacts under one root folder."""

    def __init__(self, root: Path):
        self.root = root

    def current_version(self, kind: str) -> str | None:
        """The current version of a kind, or None if none was published."""
        _check_kind(kind)
        try:
            return (self.root / kind / "current").read_text().strip()
        except FileNotFoundError:
            return None

    def current(self, kind: str, *, verify: bool = True) -> Artifact:
        """Opens the current version. Raises NotFound if there is none, CorruptArtifact."""
        version = self.current_version(kind)
        if version is None:
            raise NotFound(
                "nothing published yet",
                field=kind,
                value=str(self.root),
                remedy=f"Run the stage that publishes it ({_STAGE[kind]}).",
            )
        return self.open(kind, version, verify=verify)

    def exists(self, kind: str, version: str) -> bool:
        """Whether a version is published: whether its manifest is there."""
        _check_kind(kind)
        return (self.root / kind / version / MANIFEST).is_file()

    def open(self, kind: str, version: str, *, verify: bool = True) -> Artifact:
        """Opens a version; ``verify`` compares the sha256 of every file.

        Raises:
            NotFound: there is no such version.
            CorruptArtifact: a file is missing, differs from its hash, or the manifest is of
                another format.
        """
        _check_kind(kind)
        if not _VERSION.fullmatch(version):
            raise InvalidRequest(
                "must be 12 hexadecimal digits", field=f"{kind} version", value=version
            )
        path = self.root / kind / version
        name = f"{kind}/{version}"
        remedy = f"Remove {path} and publish it again ({_STAGE[kind]})."
        try:
            if (path / MANIFEST).stat().st_size > _MAX_MANIFEST_BYTES:
                raise CorruptArtifact("manifest too large", field=name, remedy=remedy)
            manifest = json.loads((path / MANIFEST).read_bytes())
        except FileNotFoundError:
            raise NotFound("no such version", field=name, remedy=f"{_STAGE[kind]}.") from None
        except (ValueError, UnicodeDecodeError) as e:
            raise CorruptArtifact(f"manifest is no JSON ({e})", field=name, remedy=remedy) from e
        if not isinstance(manifest, dict) or manifest.get("kind") != kind:
            raise CorruptArtifact("manifest is of another kind", field=name, remedy=remedy)
        if manifest.get("format") != FORMATS[kind]:
            raise CorruptArtifact(
                f"format must be {FORMATS[kind]}",
                field=f"{name}/{MANIFEST}",
                value=manifest.get("format"),
                remedy=f"It was written by another release of Serendip. {remedy}",
            )
        try:
            artifact = Artifact(
                kind=kind,
                version=version,
                path=path,
                config=manifest["config"],
                inputs=manifest["inputs"],
                files=manifest["files"],
                rows=manifest["rows"],
                log_until=manifest["log_until"],
                facts=manifest["facts"],
            )
        except KeyError as e:
            raise CorruptArtifact(
                "manifest lacks a key", field=name, value=e.args[0], remedy=remedy
            ) from e
        if manifest.get("version") != version:
            raise CorruptArtifact(
                "manifest is of another version",
                field=name,
                value=manifest.get("version"),
                remedy=remedy,
            )
        if verify:
            for file, expected in artifact.files.items():
                target = path / file
                if not target.is_file() or hash_file(target) != expected:
                    raise CorruptArtifact(
                        "differs from its sha256", field=f"{name}/{file}", remedy=remedy
                    )
        return artifact

    @contextlib.contextmanager
    def publish(
        self,
        kind: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        log_until: int | None = None,
        resume: bool = False,
    ) -> Iterator[Draft]:
        """Publishes what the body of the ``with`` writes, and makes it current.

        If the body raises, nothing is published and current stays. ``resume`` keeps the files
        that an interrupted run left, for the body to go on from; otherwise they are removed.

        Raises:
            InvalidRequest: another process is publishing the same version.
        """
        version = version_of(kind, config, inputs)
        path = self.root / kind / version
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent / f".{version}.lock", f"{kind}/{version}"):
            # A finished version is made again only if it is corrupt: nothing of it is resumed.
            if path.exists() and (not resume or (path / MANIFEST).exists()):
                shutil.rmtree(path)
            path.mkdir(exist_ok=True)
            draft = Draft(kind, version, path, log_until=log_until)
            yield draft
            files = {
                str(p.relative_to(path)): hash_file(p)
                for p in sorted(path.rglob("*"))
                if p.is_file()
            }
            manifest = {
                "kind": kind,
                "version": version,
                "format": FORMATS[kind],
                "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "config": config,
                "inputs": inputs,
                "files": files,
                "rows": draft.rows,
                "log_until": draft.log_until,
                "facts": draft.facts,
            }
            write_atomically(
                path / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True).encode()
            )
            self.make_current(kind, version)

    def make_current(self, kind: str, version: str) -> None:
        """Points ``current`` at a published version. Raises NotFound if there is none such."""
        if not self.exists(kind, version):
            raise NotFound("no such version", field=f"{kind}/{version}")
        write_atomically(self.root / kind / "current", version.encode())

    def reuse(
        self, kind: str, config: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> Artifact | None:
        """The artefact that this config and these inputs make, if it is published and whole.

        It becomes current. One that fails verification is as good as none: the stage makes it
        again.
        """
        version = version_of(kind, config, inputs)
        if not self.exists(kind, version):
            return None
        try:
            artifact = self.open(kind, version)
        except CorruptArtifact:
            return None
        self.make_current(kind, version)
        return artifact


_STAGE = {
    "tree": "serendip tree",
    "pairs": "serendip curate",
    "planner": "serendip finetune",
    "plans": "serendip plan",
    "retriever": "serendip retriever",
    "release": "serendip release",
    "report": "serendip evaluate",
}


_VERSION = re.compile(r"[0-9a-f]{12}")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InvalidRequest("no such kind of artefact", field="kind", value=kind)


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    with path.open("w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidRequest(
                "another process is publishing it",
                field=what,
                remedy="Wait for it to end, or stop it.",
            ) from None
        yield
