"""What lies under an artefacts' root: every version, whether it is sound, and what can go.

Reads manifests of any format; knows nothing of what a kind's files mean.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from serendip.artifacts import KINDS, MANIFEST, Artifacts, check_file, input_kind, lock_name
from serendip.core import CorruptArtifact, NotFound, SerendipError
from serendip.progress import progress
from serendip.storage import is_held, size_of, storage_errors, walk

DAY_S = 86_400.0
# Dependents first: wherever a removal is cut off, no release is left without its parts.
_ORDER = ("release", "report", "plans", "retriever", "planner", "pairs", "tree")

State = Literal["published", "draft"]


@dataclass(frozen=True)
class Entry:
    """A version on disk, or one in the making.

    Attributes:
        state: published, or a draft: without a manifest it does not exist.
        busy: whether a process is making it, or making it again.
        created_at: UTC, ISO 8601; of a draft, when it was last written to.
        changed_s: Unix time in seconds of the same.
        inputs: what it was made of, by kind; of a draft as far as it says so.
        rows, facts, log_until: as in its manifest; empty of a draft.
        releases: releases that name it.
        problem: why its manifest cannot be read; empty if it can.
    """

    kind: str
    version: str
    path: Path
    state: State
    created_at: str
    changed_s: float
    inputs: Mapping[str, str]
    rows: Mapping[str, int]
    facts: Mapping[str, Any]
    log_until: int | None
    current: bool
    busy: bool
    releases: tuple[str, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.version}"

    @property
    def made_of(self) -> tuple[str, ...]:
        """Names of the artefacts that it was made of."""
        kinds = {name: input_kind(name) for name in self.inputs}
        return tuple(dict.fromkeys(f"{k}/{self.inputs[n]}" for n, k in kinds.items() if k))


@dataclass(frozen=True)
class Finding:
    """Something that verification found.

    Attributes:
        where: kind/version, with the file where there is one.
        corrupt: whether something is broken; else it is only worth knowing.
    """

    where: str
    what: str
    corrupt: bool


@dataclass(frozen=True)
class Removal:
    """A folder that can go, and why."""

    name: str
    path: Path
    why: str
    bytes: int = 0


def list_entries(artifacts: Artifacts) -> list[Entry]:
    """Everything under the root, by kind, newest first."""
    with artifacts.guarded(writes=False):
        found = [entry for kind in KINDS for entry in _entries_of(artifacts, kind)]
    releases = [e for e in found if e.kind == "release" and e.state == "published"]
    return [
        replace(e, releases=tuple(r.version for r in releases if r.inputs.get(e.kind) == e.version))
        for e in found
    ]


def _entries_of(artifacts: Artifacts, kind: str) -> list[Entry]:
    folder = artifacts.root / kind
    current = artifacts.current_version(kind)
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if not path.is_dir() or path.name.startswith("."):
            continue
        lock = folder / lock_name(path.name)
        if (path / MANIFEST).is_file():
            found.append(_published(artifacts, kind, path, path.name == current, is_held(lock)))
        else:
            found.append(_draft(kind, path, lock))
    return sorted(found, key=lambda e: (e.created_at, e.changed_s), reverse=True)


def _published(artifacts: Artifacts, kind: str, path: Path, current: bool, busy: bool) -> Entry:
    manifest: dict[str, Any] = {}
    problem = ""
    try:
        manifest = artifacts.manifest(kind, path.name)
    except SerendipError as e:
        problem = _said(e)
    changed = (path / MANIFEST).stat().st_mtime
    return Entry(
        kind=kind,
        version=path.name,
        path=path,
        state="published",
        created_at=str(manifest.get("created_at", _utc(changed))),
        changed_s=changed,
        inputs=_mapping(manifest.get("inputs")),
        rows=_mapping(manifest.get("rows")),
        facts=_mapping(manifest.get("facts")),
        log_until=manifest.get("log_until"),
        current=current,
        busy=busy,
        problem=problem,
    )


def _draft(kind: str, path: Path, lock: Path) -> Entry:
    about: Any = None
    with contextlib.suppress(OSError, ValueError):
        about = json.loads(lock.read_text())
    changed = _last_change(path)
    return Entry(
        kind=kind,
        version=path.name,
        path=path,
        state="draft",
        created_at=_utc(changed),
        changed_s=changed,
        inputs=_mapping(_mapping(about).get("inputs")),
        rows={},
        facts={},
        log_until=None,
        current=False,
        busy=is_held(lock),
    )


def _last_change(path: Path) -> float:
    """The latest time of a file or folder, or of anything below it."""
    return max((about.st_mtime for _, about in walk(path)), default=0.0)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# --- verification ------------------------------------------------------------------------


def verify_entries(artifacts: Artifacts, entries: Sequence[Entry]) -> list[Finding]:
    """Compares published versions with their manifests: format, every file's sha256, inputs.

    Corrupt is a file that is missing or differs, a manifest that is none, a version of another
    format that is current or in a release, and a release without one of its parts. An input that
    was removed, and a file that the manifest does not name, are worth knowing.
    """
    found: list[Finding] = []
    published = [e for e in entries if e.state == "published"]
    with progress("verify", len(published)) as tick:
        for entry in published:
            said = list(_verify(artifacts, entry))
            if artifacts.exists(entry.kind, entry.version):  # else it was pruned meanwhile
                found += said
            tick(note=entry.name)
    return found


def verify_pointers(artifacts: Artifacts) -> list[Finding]:
    """Finds every ``current`` that names no published version."""
    found = []
    for kind in KINDS:
        version = artifacts.current_version(kind)
        if version is not None and not artifacts.exists(kind, version):
            what = f"names version {version!r}, which is not there"
            found.append(Finding(f"{kind}/current", what, True))
    return found


def _verify(artifacts: Artifacts, entry: Entry) -> Iterator[Finding]:
    if entry.problem:
        yield Finding(entry.name, entry.problem, True)
        return
    try:
        artifact = artifacts.open(entry.kind, entry.version, verify=False)
    except NotFound:
        return
    except CorruptArtifact as e:
        yield Finding(e.field, _said(e), entry.current or bool(entry.releases))
        return
    for name in artifact.files:
        try:
            check_file(artifact, name)
        except CorruptArtifact as e:
            yield Finding(e.field, _said(e), True)
    there = {str(p.relative_to(entry.path)) for p, _ in walk(entry.path) if p.is_file()}
    for name in sorted(there - artifact.files.keys() - {MANIFEST}):
        yield Finding(f"{entry.name}/{name}", "is named by no manifest", False)
    for name in entry.made_of:
        kind, _, version = name.partition("/")
        if not artifacts.exists(kind, version):
            what = f"its {kind} {version} is not there any more"
            yield Finding(entry.name, what, entry.kind == "release")


def _said(error: SerendipError) -> str:
    return str(error).removeprefix(f"{error.field}: ")


# --- retention ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Retention:
    """What prune keeps.

    Attributes:
        keep: newest versions of each kind.
        draft_age_s: a draft that no process is making goes once nothing was written for so long.
        forget_inputs: let go also what is kept only because a kept version was made of it.
    """

    keep: Mapping[str, int]
    draft_age_s: float = DAY_S
    forget_inputs: bool = False


def removable(artifacts: Artifacts, retention: Retention) -> list[Removal]:
    """What retention lets go, dependents before what they were made of.

    Kept are the newest versions of each kind, the current ones, the current and the previous
    release (retrievers keep two open), the parts of every release that is kept, what drafts are
    made of, and what the current versions and those two releases were made of.
    """
    with artifacts.guarded(writes=False):
        found = _choose(artifacts, retention)
    return [replace(r, bytes=size_of(r.path)) for r in found]


def _choose(artifacts: Artifacts, retention: Retention) -> list[Removal]:
    entries = [e for kind in KINDS for e in _entries_of(artifacts, kind)]
    by_name = {e.name: e for e in entries}
    before = time.time() - retention.draft_age_s
    old = {e.name for e in entries if e.state == "draft" and not e.busy and e.changed_s < before}
    kept = _kept(artifacts, [e for e in entries if e.name not in old], retention.keep)
    if not retention.forget_inputs:
        kept |= _closure(by_name, _served(artifacts, entries))
    found = []
    for entry in sorted(entries, key=lambda e: _ORDER.index(e.kind)):
        if entry.name in old:
            found.append(Removal(entry.name, entry.path, "a draft that was given up"))
        elif entry.state == "published" and entry.name not in kept:
            why = "its manifest cannot be read" if entry.problem else "beyond artifacts.keep"
            found.append(Removal(entry.name, entry.path, why))
    return found + list(_leftovers(artifacts, by_name, before))


def _served(artifacts: Artifacts, entries: Iterable[Entry]) -> set[str]:
    """The current version of each kind, and the previous release."""
    previous = artifacts.previous_version("release")
    return {e.name for e in entries if e.current} | {f"release/{previous}"}


def _kept(artifacts: Artifacts, entries: list[Entry], keep: Mapping[str, int]) -> set[str]:
    kept = _served(artifacts, entries)
    for kind in KINDS:
        sound = [e for e in entries if e.state == "published" and not e.problem]
        kept |= {e.name for e in [e for e in sound if e.kind == kind][: keep[kind]]}
    for entry in entries:
        unfinished = entry.state == "draft" or entry.busy
        if unfinished or (entry.kind == "release" and entry.name in kept):
            kept |= {entry.name, *entry.made_of}
    return kept


def _closure(by_name: Mapping[str, Entry], names: Iterable[str]) -> set[str]:
    """Those versions, what they were made of, what that was made of, and so on."""
    found: set[str] = set()
    open_ = list(names)
    while open_:
        name = open_.pop()
        if name not in found and name in by_name:
            found.add(name)
            open_ += by_name[name].made_of
    return found


def _leftovers(
    artifacts: Artifacts, by_name: Mapping[str, Entry], before_s: float
) -> Iterator[Removal]:
    """Hidden remains of killed processes: half-removed folders, versions made again, locks."""
    for kind in KINDS:
        folder = artifacts.root / kind
        for path in sorted(folder.glob(".*")) if folder.is_dir() else ():
            version = path.name[1:].split(".")[0]
            if path.name == lock_name(version):
                entry = by_name.get(f"{kind}/{version}")
                idle = (entry is None or entry.state == "published") and not is_held(path)
                if idle and path.stat().st_mtime < before_s:
                    yield Removal(f"{kind}/{path.name}", path, "a lock that nobody holds")
            elif is_held(folder / lock_name(version)):
                continue
            elif path.name.endswith(".gone") or _last_change(path) < before_s:
                yield Removal(f"{kind}/{path.name}", path, "left by a process that was killed")


def prune(artifacts: Artifacts, retention: Retention) -> list[Removal]:
    """Removes what ``removable`` names; returns it.

    It is chosen, and every manifest of it removed, while nobody begins to publish or moves a
    pointer: a version that is half removed does not exist.

    Raises:
        StorageError: the root cannot be written.
    """
    with storage_errors(artifacts.root, "run serendip artifacts prune again."):
        with artifacts.guarded():
            away = [_put_away(removal) for removal in _choose(artifacts, retention)]
        away = [replace(r, bytes=r.bytes + size_of(r.path)) for r in away]
        with progress("prune", len(away)) as tick:
            for removal in away:
                if removal.path.is_dir():  # another prune may be at it
                    shutil.rmtree(removal.path, ignore_errors=True)
                else:
                    removal.path.unlink(missing_ok=True)
                tick(note=removal.name)
    return away


def _put_away(removal: Removal) -> Removal:
    """Makes a version cease to exist at once; returns where its files are for the moment."""
    path = removal.path
    if not path.is_dir() or path.name.startswith("."):
        return removal
    manifest = path / MANIFEST
    taken = size_of(manifest)
    manifest.unlink(missing_ok=True)
    gone = path.with_name(f".{path.name}.{time.time_ns()}.gone")
    path.rename(gone)
    path.with_name(lock_name(path.name)).unlink(missing_ok=True)
    return replace(removal, path=gone, bytes=taken)
