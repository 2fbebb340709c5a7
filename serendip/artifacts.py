"""Every on-disk format: publish, open, verify, current.

An offline stage publishes one artefact, ``<root>/<kind>/<version>/``, whose ``manifest.json``
is written last: without a manifest the version does not exist. The version is derived from
what the artefact is made of (format, config, input versions), so the same stage on the same
inputs finds its work done. ``<root>/<kind>/current`` names the current version and is
replaced atomically; ``previous`` names the one before.

A version in the making is a *draft*: its files, and a lock file that says what it is made of.
Whoever begins or ends a draft, moves ``current`` or removes a version holds the root's lock while
doing it, so that nothing is removed that somebody is about to need.

This module knows nothing of what a kind's files mean.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serendip.core import CorruptArtifact, InvalidRequest, NotFound
from serendip.storage import hash_file, seal_file, storage_errors, swap, write_atomically

KINDS = ("tree", "pairs", "planner", "plans", "retriever", "release", "report")

# Raised when the files of a kind change their meaning; readers refuse any other.
FORMATS: Mapping[str, int] = dict.fromkeys(KINDS, 1) | {
    "tree": 2,
    "planner": 4,
    "plans": 2,
    "retriever": 2,
    "release": 2,
    "report": 2,
}

# Which verb publishes a kind.
VERBS: Mapping[str, str] = {
    "tree": "serendip tree",
    "pairs": "serendip curate",
    "planner": "serendip finetune",
    "plans": "serendip plan",
    "retriever": "serendip retriever",
    "release": "serendip release",
    "report": "serendip evaluate",
}

MANIFEST = "manifest.json"
_LOCK = ".lock"
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

    @property
    def tree_version(self) -> str:
        """The tree_version whose node IDs the artefact speaks of; "" if it speaks of none.

        A tree and a release state it among their facts: their own version changes with the item
        order too. All others name it as their input ``tree``.
        """
        return str(self.facts.get("tree_version") or self.inputs.get("tree", ""))

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


def input_kind(name: str) -> str | None:
    """The kind of artefact that an input of this name is; None of an outside one (data, corpus).

    A name is its kind, or begins with it, where a stage reads two of a kind: tree, tree_items.
    """
    kind = name.partition("_")[0]
    return kind if kind in KINDS else None


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
                remedy=f"Run {VERBS[artifact.kind]} again, with the same configuration.",
            )


class Artifacts:
    """The artefacts under one root folder."""

    def __init__(self, root: Path):
        self.root = root

    def current_version(self, kind: str) -> str | None:
        """The current version of a kind, or None if none was published."""
        return self._pointer(kind, "current")

    def previous_version(self, kind: str) -> str | None:
        """The version that was current before the current one, or None."""
        return self._pointer(kind, "previous")

    def _pointer(self, kind: str, name: str) -> str | None:
        _check_kind(kind)
        try:
            return (self.root / kind / name).read_text().strip()
        except FileNotFoundError:
            return None

    def current(self, kind: str, *, verify: bool = True) -> Artifact:
        """Opens the current version. Raises NotFound if there is none, CorruptArtifact."""
        while True:
            version = self.current_version(kind)
            if version is None:
                raise NotFound(
                    "nothing published yet",
                    field=kind,
                    value=str(self.root),
                    remedy=f"Run the stage that publishes it ({VERBS[kind]}).",
                )
            try:
                return self.open(kind, version, verify=verify)
            except (NotFound, CorruptArtifact):
                if self.current_version(kind) == version:
                    raise
                # Another one has become current, and this one was pruned, while it was read.

    def exists(self, kind: str, version: str) -> bool:
        """Whether a version is published: whether its manifest is there."""
        _check_kind(kind)
        return (self.root / kind / version / MANIFEST).is_file()

    def manifest(self, kind: str, version: str) -> dict[str, Any]:
        """A version's manifest as it lies on disk, of whatever format.

        Raises:
            NotFound: there is no such version.
            CorruptArtifact: it is no manifest of this kind and version.
        """
        _check_kind(kind)
        if not _VERSION.fullmatch(version):
            raise InvalidRequest(
                "must be 12 hexadecimal digits", field=f"{kind} version", value=version
            )
        path = self.root / kind / version / MANIFEST
        name = f"{kind}/{version}"
        remedy = _remake(kind, path.parent)
        try:
            if path.stat().st_size > _MAX_MANIFEST_BYTES:
                raise CorruptArtifact("manifest too large", field=name, remedy=remedy)
            manifest = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise NotFound("no such version", field=name, remedy=f"{VERBS[kind]}.") from None
        except (ValueError, UnicodeDecodeError) as e:
            raise CorruptArtifact(f"manifest is no JSON ({e})", field=name, remedy=remedy) from e
        if not isinstance(manifest, dict) or manifest.get("kind") != kind:
            raise CorruptArtifact("manifest is of another kind", field=name, remedy=remedy)
        if manifest.get("version") != version:
            raise CorruptArtifact(
                "manifest is of another version",
                field=name,
                value=manifest.get("version"),
                remedy=remedy,
            )
        return manifest

    def open(self, kind: str, version: str, *, verify: bool = True) -> Artifact:
        """Opens a version; ``verify`` compares the sha256 of every file.

        Raises:
            NotFound: there is no such version.
            CorruptArtifact: a file is missing, differs from its hash, or the manifest is of
                another format.
        """
        manifest = self.manifest(kind, version)
        path = self.root / kind / version
        name = f"{kind}/{version}"
        _check_format(manifest, kind, name)
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
                f"manifest lacks {e}", field=name, remedy=_remake(kind, path)
            ) from e
        if verify:
            for file in artifact.files:
                check_file(artifact, file)
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

        If the body raises, nothing is published, current stays, and the draft is removed.
        ``resume`` keeps it for the next run's body to go on from, and so what a killed run left;
        without it that is removed too. A version that is there already stays in its place until
        the new one takes it whole.

        Raises:
            InvalidRequest: another process is publishing the same version.
            StorageError: the folder is full, read-only or not permitted.
        """
        version = version_of(kind, config, inputs)
        path = self.root / kind / version
        kept = f"run {VERBS[kind]} again" + (": it goes on where it stopped." if resume else ".")
        with storage_errors(self.root, kept), self._drafting(kind, version, inputs):
            # A finished version is made again only if it is corrupt: nothing of it is resumed.
            folder = path.with_name(f".{version}.again") if self.exists(kind, version) else path
            if folder.exists() and (not resume or (folder / MANIFEST).exists()):
                shutil.rmtree(folder)
            folder.mkdir(exist_ok=True)
            for leftover in folder.glob(f".{MANIFEST}.*"):
                leftover.unlink()
            draft = Draft(kind, version, folder, log_until=log_until)
            try:
                # Told while what filled the disk is still there.
                with storage_errors(self.root, kept):
                    yield draft
                    files = {
                        str(p.relative_to(folder)): seal_file(p)
                        for p in sorted(folder.rglob("*"))
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
                    data = json.dumps(manifest, indent=2, sort_keys=True).encode()
                    write_atomically(folder / MANIFEST, data)
            except BaseException:
                if not resume:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            if folder != path:
                swap(folder, path)
                draft.path = path
            self.make_current(kind, version)

    def make_current(self, kind: str, version: str) -> None:
        """Points ``current`` at a published version. Raises NotFound if there is none such."""
        if self.exists(kind, version) and self.current_version(kind) == version:
            return  # nothing to write, so that a read-only store serves what it has
        with self.guarded():
            if not self.exists(kind, version):
                raise NotFound("no such version", field=f"{kind}/{version}")
            before = self.current_version(kind)
            write_atomically(self.root / kind / "current", version.encode())
            if before is not None:
                write_atomically(self.root / kind / "previous", before.encode())

    @contextlib.contextmanager
    def guarded(self, *, writes: bool = True) -> Iterator[None]:
        """Holds the root's lock: nobody else begins or ends a draft, moves a pointer or removes.

        For moments only: it waits for whoever holds it.

        Args:
            writes: make the lock's file if there is none; else a root without one is as it is.
        """
        path = self.root / _LOCK
        with contextlib.ExitStack() as stack:
            if writes and not path.exists():
                path.touch()
            with contextlib.suppress(FileNotFoundError):
                fcntl.flock(stack.enter_context(path.open("rb")), fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _drafting(self, kind: str, version: str, inputs: Mapping[str, str]) -> Iterator[None]:
        """Holds a version's lock file, which says what the draft is made of, while it is made."""
        path = self.root / kind / lock_name(version)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            with self.guarded():
                lock = stack.enter_context(path.open("a+"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InvalidRequest(
                        "another process is publishing it",
                        field=f"{kind}/{version}",
                        remedy="Wait for it to end, or stop it.",
                    ) from None
                lock.truncate(0)
                lock.write(json.dumps({"inputs": inputs}))
                lock.flush()
            try:
                yield
            finally:
                # It stays beside a draft that is left to go on from, as it does after a kill.
                with contextlib.suppress(OSError), self.guarded():
                    if self.exists(kind, version) or not (self.root / kind / version).exists():
                        path.unlink()

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
            with storage_errors(self.root, f"run {VERBS[kind]} again."):
                self.make_current(kind, version)
        except (CorruptArtifact, NotFound):  # the latter if it was removed in the meantime
            return None
        return artifact


def check_file(artifact: Artifact, name: str) -> None:
    """Raises CorruptArtifact unless a file is there and has the hash of the manifest."""
    try:
        found = hash_file(artifact.path / name)
    except (FileNotFoundError, IsADirectoryError):
        found = ""
    if found != artifact.files[name]:
        raise CorruptArtifact(
            "differs from its sha256" if found else "is missing",
            field=f"{artifact.kind}/{artifact.version}/{name}",
            remedy=_remake(artifact.kind, artifact.path),
        )


def lock_name(version: str) -> str:
    """Name of the file that is locked while a version is made."""
    return f".{version}.lock"


def _remake(kind: str, path: Path) -> str:
    return f"Run {VERBS[kind]} again, which makes it anew, or remove {path}."


def _check_format(manifest: Mapping[str, Any], kind: str, name: str) -> None:
    found, ours = manifest.get("format"), FORMATS[kind]
    if found == ours:
        return
    if isinstance(found, int) and found < ours:
        remedy = (
            f"It was written by an older release of Serendip. Run {VERBS[kind]} again: it "
            "publishes a version that this one reads, and serendip artifacts prune removes the old."
        )
    else:
        remedy = (
            "It was written by another release of Serendip: upgrade this one, or run "
            f"{VERBS[kind]} again."
        )
    raise CorruptArtifact(
        f"format must be {ours}", field=f"{name}/{MANIFEST}", value=found, remedy=remedy
    )


_VERSION = re.compile(r"[0-9a-f]{12}")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InvalidRequest("no such kind of artefact", field="kind", value=kind)
