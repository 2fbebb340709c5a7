"""What the demo shows: real calls to both servers, and a page and a picture of the answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.columns import Columns
from rich.console import Console, Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from serendip_client import SerendipClient

from serendip.artifacts import Artifacts
from serendip.catalog.items import read_items
from serendip.catalog.logs import read_interactions
from serendip.catalog.media import decode_image
from serendip.config import Config
from serendip.core import InvalidData, Item, MediaError
from serendip.curation.curate import read_pairs
from serendip.evaluation.metrics import percentile, share
from serendip.local import ServerProcess
from serendip.tree.cluster_tree import ClusterTree

K = 6
SHOWN = 4
WARM_UP = 3
SIDE, GAP, LINE, HEAD = 112, 10, 34, 18

page = Console(highlight=False)  # the result goes to standard output, progress does not
if not page.is_terminal:
    page.width = 110

Servers = tuple[ServerProcess, ServerProcess]


@dataclass(frozen=True)
class Call:
    """One Recommend call and its answer.

    Attributes:
        history: the user's item IDs, oldest first; the last one is the context item.
        milliseconds: as the client saw it.
    """

    user: str
    history: list[str]
    context: Item
    answer: Any
    milliseconds: float


@dataclass(frozen=True)
class Showcase:
    """The calls, and what is needed to check and to show them."""

    calls: list[Call]
    items: dict[str, Item]
    tree: ClusterTree
    servers: Servers

    def percentile_ms(self, q: float) -> float:
        return round(percentile([c.milliseconds for c in self.calls], q), 3)

    def inside_planned_cluster(self) -> float:
        """Share of the candidates that lie in the planned cluster; the rest says it is widened."""
        return share([self._inside(call, c) for call in self.calls for c in call.answer.candidates])

    def already_seen(self) -> int:
        """Candidates that their user had seen: none, if all is well."""
        return sum(c.item_id in call.history for call in self.calls for c in call.answer.candidates)

    def _inside(self, call: Call, candidate: Any) -> bool:
        start, end = self.tree.slice(call.answer.plan.clusters[0].node_id)
        return candidate.item_id in self.tree.item_ids[start:end]

    def title(self, item_id: str) -> str:
        return self.items[item_id].title if item_id in self.items else item_id


def call_servers(config: Config, artifacts: Artifacts, servers: Servers, calls: int) -> Showcase:
    """Calls Recommend for users who have just liked an item that the model never saw labelled."""
    tree = ClusterTree.open(artifacts.current("tree"))
    items = {i.item_id: i for i in read_items(config.data_path)}
    made: list[Call] = []
    with SerendipClient(servers[0].address) as client:
        for at, (user, history) in enumerate(_users(config, artifacts, calls + WARM_UP)):
            start = time.perf_counter()
            answer = client.recommend(history, history[-1], K)
            spent = (time.perf_counter() - start) * 1000
            if at >= WARM_UP:
                made.append(Call(user, history, items[history[-1]], answer, spent))
    if not made:
        raise InvalidData(
            f"has fewer than {WARM_UP + 1} users who liked a held-out item of the corpus",
            field="interactions.parquet",
            remedy="Bring a longer log.",
        )
    return Showcase(made, items, tree, servers)


def _users(config: Config, artifacts: Artifacts, count: int) -> Iterator[tuple[str, list[str]]]:
    """Users with their history up to a held-out item of the corpus that they liked."""
    pairs = artifacts.current("pairs")
    held_out = set(read_pairs(pairs, "held_out").column("item_id").to_pylist())
    corpus = set(read_pairs(pairs, "corpus").column("item_id").to_pylist())
    log = read_interactions(config.data_path, max_unknown_share=config.max_unknown_share).sort_by(
        [("user_id", "ascending"), ("timestamp", "ascending"), ("item_id", "ascending")]
    )
    user, history, liked = "", [], 0
    columns = (log.column(c).to_pylist() for c in ("user_id", "item_id", "satisfaction"))
    found = 0
    for who, item_id, satisfaction in zip(*columns, strict=True):
        if who != user:
            if liked:
                yield user, history[:liked]
                found += 1
                if found == count:
                    return
            user, history, liked = who, [], 0
        history.append(item_id)
        if item_id in held_out and item_id in corpus and satisfaction >= 0.7:
            liked = len(history)
    if liked:
        yield user, history[:liked]


def show(showcase: Showcase, figures: dict[str, Any], files: Sequence[Path], *, kept: str) -> None:
    """The screen at the end; ``kept`` has the options that name the configuration of servers that
    keep running, or is empty."""
    page.print()
    for call in _different(showcase.calls):
        page.print(_panel(showcase, call))
    page.print(Columns([_figures(figures), _timings(figures)], padding=(0, 4)))
    for path in files:
        page.print(f"  wrote {path}")
    planner, retriever = showcase.servers
    if kept:
        process_ids = f"{planner.process.pid} {retriever.process.pid}"
        example = showcase.calls[0]
        page.print(
            f"\nThe servers keep running: planner {planner.address} ({planner.metrics}), "
            f"retriever {retriever.address} ({retriever.metrics}).\nCall them, then end them:\n"
            f"  .venv/bin/serendip recommend {example.context.item_id} "
            f"--history {example.history[0]} --planner {planner.address} {kept}\n"
            f"  kill {process_ids}",
            soft_wrap=True,
        )
    else:
        page.print(f"  metrics were at {planner.metrics} and {retriever.metrics}")
        page.print("  ./build.sh demo --keep leaves the servers running")


def _different(calls: Sequence[Call]) -> list[Call]:
    """Some calls with context items of different clusters."""
    chosen: dict[Any, Call] = {}
    for call in calls:
        chosen.setdefault(call.answer.plan.own_node_id, call)
    return list(chosen.values())[:SHOWN]


def _panel(showcase: Showcase, call: Call) -> Panel:
    plan = call.answer.plan
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("score", "item", "cluster"):
        table.add_column(column)
    for c in call.answer.candidates:
        cluster = showcase.tree.nodes.description[c.node_id] + (" (widened)" if c.widened else "")
        table.add_row(f"{c.score:.2f}", escape(showcase.title(c.item_id)), escape(cluster))
    own = showcase.tree.nodes.description[plan.own_node_id] if plan.own_node_id else "?"
    reasoning = escape("\n".join(f"  {line}" for line in plan.reasoning.splitlines()))
    text = (
        f"[dim]own cluster[/dim]  {escape(own)}\n"
        f"[dim]the reasoning, and what it leads to[/dim]\n{reasoning}\n"
        f"  [bold green]Next: {escape(plan.clusters[0].description)}[/bold green]"
    )
    title = f"{escape(call.context.title)}  [dim]{call.context.item_id}, {call.user}[/dim]"
    return Panel(Group(text, table), title=title, title_align="left")


def _figures(figures: dict[str, Any]) -> Table:
    simulated = " (simulated)" if figures["simulated"] else ""
    table = Table(title=f"held-out items{simulated}", title_justify="left", show_header=False)
    low, high = figures["recall_at_1_interval"]
    table.add_row("recall@1, own cluster excluded", f"{figures['recall_at_1']:.3f}")
    table.add_row("  95% interval", f"{low:.3f} to {high:.3f}")
    if figures["recall_text_ceiling"] is not None:
        table.add_row("best that text alone can reach", f"{figures['recall_text_ceiling']:.3f}")
    table.add_row("a random sibling", f"{figures['sibling_chance']:.3f}")
    table.add_row("recall, unconstrained", f"{figures['recall']:.3f}")
    table.add_row("match rate, unconstrained", f"{figures['match_rate']:.3f}")
    table.add_row("first plans serendipitous", f"{figures['serendipitous_share']:.3f}")
    table.add_row("  under the sibling view", f"{figures['serendipitous_share_siblings']:.3f}")
    for kind in ("similar", "serendipitous"):
        value = figures["comparison"][kind]["satisfaction"]
        table.add_row(f"satisfaction of {kind} pairs", f"{value:.3f}")
    for key, name in (
        ("truth_agreement", "agreement with the planted truth"),
        ("follows_frames", "plans that follow swapped frames"),
    ):
        if figures[key] is not None:
            table.add_row(name, f"{figures[key]:.3f}")
    return table


def _timings(figures: dict[str, Any]) -> Table:
    table = Table(title="time", title_justify="left", show_header=False)
    for name, seconds in figures["stages_s"].items():
        table.add_row(name, f"{seconds:.1f} s")
    table.add_row("all", f"{sum(figures['stages_s'].values()):.1f} s")
    calls = figures["recommend_calls"]
    table.add_row(f"Recommend p50 of {calls}", f"{figures['recommend_p50_ms']:.1f} ms")
    table.add_row(f"Recommend p99 of {calls}", f"{figures['recommend_p99_ms']:.1f} ms")
    return table


def draw_sheet(showcase: Showcase, path: Path) -> Path:
    """A sheet of thumbnails: each row a context item, its plan, and what was recommended."""
    calls = _different(showcase.calls)
    row_height = HEAD + SIDE + LINE + GAP
    sheet = Image.new("RGB", (3 * GAP + (1 + K) * (SIDE + GAP), GAP + len(calls) * row_height))
    sheet.paste("white", (0, 0, *sheet.size))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, call in enumerate(calls):
        top = GAP + row * row_height
        plan = call.answer.plan
        pen.text((GAP, top), "just liked", "gray", font)
        pen.text((3 * GAP + SIDE, top), f"Next: {plan.clusters[0].description}", "darkgreen", font)
        ids = [call.context.item_id, *(c.item_id for c in call.answer.candidates)]
        for column, item_id in enumerate(ids):
            left = GAP + column * (SIDE + GAP) + (GAP if column else 0)
            sheet.paste(_thumbnail(showcase.items[item_id]), (left, top + HEAD))
            for line, text in enumerate(_wrap(showcase.title(item_id), 18)[:2]):
                pen.text((left, top + HEAD + SIDE + 3 + 14 * line), text, "black", font)
    sheet.save(path)
    return path


def _thumbnail(item: Item) -> Image.Image:
    empty = Image.new("RGB", (SIDE, SIDE), "lightgray")
    if item.thumbnail is None:
        return empty
    try:
        picture = Image.fromarray(decode_image(item.thumbnail))
    except MediaError:
        return empty
    picture.thumbnail((SIDE, SIDE))
    if picture.width < SIDE and picture.height < SIDE:
        picture = picture.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    empty.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return empty


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()[:width]
    return lines
