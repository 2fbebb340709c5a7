"""``serendip artifacts``: what is published, whether it is sound, where it comes from, what can go.

What was asked for goes to standard output, as a table or, with ``--json``, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from serendip import inventory
from serendip.artifacts import KINDS, Artifacts
from serendip.config import Config, load_config
from serendip.core import InvalidRequest, NotFound
from serendip.storage import size_of

if TYPE_CHECKING:
    from serendip.lineage import Origin

app = typer.Typer(
    help="Lists, verifies, explains and prunes what the stages have published.",
    no_args_is_help=True,
)

ConfigName = Annotated[str, typer.Option("--config", help="tiny, or a TOML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
_PIPE_WIDTH = 200  # of tables that no terminal shows


def _store(config: str) -> tuple[Config, Artifacts]:
    settings = load_config(config)
    return settings, Artifacts(settings.artifacts_path)


def _print(thing: object) -> None:
    wide = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(width=wide, highlight=False).print(thing)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _named(name: str) -> tuple[str, str]:
    """(kind, version) of "kind" or "kind/version"; the version may be empty."""
    kind, _, version = name.partition("/")
    if kind not in KINDS:
        raise InvalidRequest(
            "no such kind of artefact",
            field="ARTIFACT",
            value=name,
            remedy=f"Name one of {', '.join(KINDS)}, or KIND/VERSION.",
        )
    return kind, version


def _size(count: int) -> str:
    """Bytes as people read them."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


# --- list --------------------------------------------------------------------------------


@app.command("list")
def list_(config: ConfigName = "tiny", as_json: AsJson = False) -> None:
    """Every version, newest first, and every draft."""
    _, artifacts = _store(config)
    rows = [_row(entry) for entry in inventory.list_entries(artifacts)]
    if as_json:
        _print_json(rows)
        return
    table = Table(box=None, padding=(0, 1), caption=str(artifacts.root), caption_justify="left")
    for column in ("kind", "version", "", "in release", "created", "size"):
        table.add_column(column, justify="right" if column == "size" else "left", no_wrap=True)
    table.add_column("rows")
    table.add_column("made of")
    for row in rows:
        marks = {
            "current": row["current"],
            "being made": row["busy"],
            "draft": row["state"] == "draft",
        }
        counts = ", ".join(f"{name} {n:,}" for name, n in row["rows"].items())
        made_of = " ".join(f"{k}/{v}" for k, v in row["made_of"].items())
        table.add_row(
            row["kind"], row["version"], next((m for m, holds in marks.items() if holds), ""),
            "\n".join(row["releases"]), row["created_at"], _size(row["bytes"]),
            escape(row["problem"] or counts), escape(made_of),
        )  # fmt: skip
    _print(table)


def _row(entry: inventory.Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "version": entry.version,
        "state": entry.state,
        "current": entry.current,
        "busy": entry.busy,
        "releases": list(entry.releases),
        "created_at": entry.created_at,
        "bytes": size_of(entry.path),
        "rows": dict(entry.rows),
        "made_of": dict(entry.inputs),
        "problem": entry.problem,
    }


# --- verify ------------------------------------------------------------------------------


@app.command()
def verify(
    artifact: Annotated[str, typer.Argument(help="KIND or KIND/VERSION; default: all.")] = "",
    config: ConfigName = "tiny",
    as_json: AsJson = False,
) -> None:
    """Compares versions with their manifests; exit code 1 if anything is corrupt."""
    _, artifacts = _store(config)
    entries = inventory.list_entries(artifacts)
    findings = [] if artifact else inventory.verify_pointers(artifacts)
    if artifact:
        kind, version = _named(artifact)
        entries = [e for e in entries if e.kind == kind and version in ("", e.version)]
        if not entries:
            raise NotFound("nothing published", field=artifact, value=str(artifacts.root))
    findings += inventory.verify_entries(artifacts, entries)
    if as_json:
        _print_json([vars(f) for f in findings])
    else:
        for f in findings:
            print(f"{'CORRUPT' if f.corrupt else 'note'}  {f.where}: {f.what}")
        versions = sum(e.state == "published" for e in entries)
        print(f"{versions} versions, {sum(f.corrupt for f in findings)} corrupt")
    if any(f.corrupt for f in findings):
        raise typer.Exit(1)


# --- lineage -----------------------------------------------------------------------------


@app.command()
def lineage(
    artifact: Annotated[str, typer.Argument(help="KIND (its current) or KIND/VERSION.")] = "",
    item: Annotated[str, typer.Option(help="An item: its plan in the current release.")] = "",
    config: ConfigName = "tiny",
    as_json: AsJson = False,
) -> None:
    """Where an artefact, or an item's served plan, comes from: back to the data and the log."""
    from serendip.lineage import origin_of, served_plan

    if bool(artifact) == bool(item):
        raise InvalidRequest(
            "name one artefact, or one item",
            field="ARTIFACT, --item",
            remedy="serendip artifacts lineage release, or ... lineage --item ID.",
        )
    _, artifacts = _store(config)
    if artifact:
        origin = origin_of(artifacts, *_named(artifact))
        if as_json:
            _print_json(origin.to_json())
        else:
            _print(_tree(origin, set()))
        return
    served = served_plan(artifacts, item)
    if as_json:
        _print_json(served.to_json())
        return
    plan = served.plan
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(plan.planned_at_ms / 1000))
    root = Tree(
        escape(
            f"plan of {item}, served by release/{served.release}, planned at {made} "
            f"by planner {plan.planner_version} on tree {plan.tree_version}"
        )
    )
    clusters = Table(box=None, padding=(0, 1), show_header=False)
    for c in plan.clusters:
        note = "serendipitous" if c.serendipitous else ""
        clusters.add_row(f"{c.score:.4f}", f"node {c.node_id}", escape(c.description), note)
    root.add(clusters)
    root.children.append(_tree(served.origin, set()))
    _print(root)


def _tree(origin: Origin, shown: set[str]) -> Tree:
    """The tree of an origin; what was shown once is only named again."""
    name = f"{origin.kind} {origin.version}"
    again = name in shown and bool(origin.made_of)
    shown.add(name)
    said = "  as above" if again else _about(origin)
    tree = Tree(f"[bold]{escape(name)}[/bold]{escape(said)}")
    if not again:
        tree.children.extend(_tree(below, shown) for below in origin.made_of)
    return tree


def _about(origin: Origin) -> str:
    if origin.removed:
        return "  removed"
    if origin.entry is None:
        return ""
    said = [origin.entry.created_at]
    said += [f"{name} {count:,}" for name, count in origin.entry.rows.items()]
    until = origin.entry.log_until
    if until is not None:
        seen = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until / 1000))
        said.append(f"log until {seen}")
    return "  " + ", ".join(said)


# --- prune -------------------------------------------------------------------------------


@app.command()
def prune(
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove; else only say what would go.")
    ] = False,
    forget_inputs: Annotated[
        bool,
        typer.Option(
            "--forget-inputs",
            help="Let go what served artefacts were made of, where nothing serves it itself.",
        ),
    ] = False,
    config: ConfigName = "tiny",
    as_json: AsJson = False,
) -> None:
    """Removes versions beyond artifacts.keep that nothing needs, and drafts that were given up."""
    settings, artifacts = _store(config)
    retention = inventory.Retention(
        keep=settings.artifacts.keep.model_dump(),
        draft_age_s=settings.artifacts.draft_hours * 3600,
        forget_inputs=forget_inputs,
    )
    act = inventory.prune if yes else inventory.removable
    removals = act(artifacts, retention)
    if as_json:
        _print_json([{"name": r.name, "bytes": r.bytes, "why": r.why} for r in removals])
        return
    _say(removals, "removed" if yes else "would remove")
    if removals and not yes:
        print("nothing was removed; --yes does it")


def _say(removals: Sequence[inventory.Removal], did: str) -> None:
    for r in removals:
        print(f"{did} {r.name}, {r.bytes:,} bytes: {r.why}")
    print(f"{did} {len(removals)}, {sum(r.bytes for r in removals):,} bytes")
