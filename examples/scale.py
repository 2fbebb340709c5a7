"""What a billion items need: the tables of docs/scale.md, from inputs and where they come from.

python examples/scale.py [NAME=VALUE ...]      an input takes another value
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Input:
    """A number that goes in.

    Attributes:
        kind: asked (the question itself), measured (here, 2 shared x86-64 cores), published (by
            its maker), assumed (by us: put yours in), open (to be measured; what stands for it
            until then is in ``source``).
    """

    value: float | None
    kind: str
    source: str


_HEAD = 1000  # ranks that are summed one by one

INPUTS = {
    "items": Input(1e9, "asked", "the catalogue"),
    "coverage": Input(0.8, "asked", "share of the impressions that have a plan"),
    "window_h": Input(12, "asked", "hours a run may take"),
    "stale_share": Input(0.1, "asked", "share of the corpus that an incremental run plans"),
    "zipf": Input(1.0, "assumed", "exponent of the impressions, for the head corpus"),
    "flat_share": Input(1169 / 3883, "measured", "MovieLens: 1,169 of 3,883 films cover 80%"),
    "events_per_item": Input(100, "assumed", "rows of the log that curation reads"),
    "window_used": Input(0.8, "assumed", "share of the window that is work, not retries or starts"),
    "cores": Input(32, "assumed", "a machine; rates a core are taken to add up"),
    "memory_gb": Input(256, "assumed", "a machine"),
    "nic_gbit": Input(25, "assumed", "a machine"),
    "media_mb": Input(20, "assumed", "video and thumbnail of an item, to be read"),
    "videos_per_core_s": Input(1 / 0.141, "measured", "2 frames of a video: 17 clips of .9 MB"),
    "hash_gb_per_core_s": Input(0.82, "measured", "sha256 of a file"),
    "embedded_per_core_s": Input(
        1361 / 14.9, "measured", "the embedded 1.2M model: the demo's corpus, stages but media"
    ),
    "bulk_per_gpu_s": Input(None, "open", "items of a real MLLM; until then the roofline below"),
    "parameters": Input(4e9, "assumed", "the MLLM"),
    "image_tokens": Input(256, "published", "Gemma 3, an image"),
    "tower_tflop": Input(5.47, "published", "an image through Gemma 3's tower: bench footprint"),
    "images": Input(3, "measured", "thumbnail and 2 frames: the configuration's default"),
    "text_tokens": Input(150, "assumed", "title, text and instruction"),
    "written_tokens": Input(64, "assumed", "reasoning, and what the search reads"),
    "gpu_tflops": Input(989, "published", "H100 SXM, bf16 dense"),
    "prefill_mfu": Input(0.4, "assumed", "share of them that prefill reaches"),
    "decode_mfu": Input(0.1, "assumed", "share of them that batched decoding reaches"),
    "plan_bytes": Input(962_560 / 1392, "measured", "on disk: the demo's plans.lmdb, seed 1"),
    "store_mb_per_s": Input(6400 / 119.9, "measured", "bench store: 10M x 640 B in 119.9 s"),
    "check_us": Input(8.5, "measured", "serendip release, a plan of 8 clusters"),
    "curate_rows_per_core_s": Input(100e6 / 202.4, "measured", "bench curate: 100M in 202.4 CPU s"),
    "spark_rows_per_core_s": Input(20e6 / 300.3, "measured", "bench curate: 20M in 300.3 CPU s"),
    "tree_items_per_core_s": Input(1e6 / 57.4, "measured", "prototype: 1M x 64 in 2 x 28.7 s"),
    "dimensions": Input(64, "measured", "of vectors and of the item matrix: the defaults"),
    "leaves": Input(16 * 16 * 16 * 4, "measured", "of the tree of that prototype"),
    "scan_gb_per_core_s": Input(12, "measured", "prototype: matrix times vector, one core"),
}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One part of a run over one corpus.

    Attributes:
        unit: what it runs on: "machine" or "GPU".
        full_h, incremental_h: hours on one of them.
        how: "any" spreads over as many as there are; "one" is a single process today.
    """

    name: str
    unit: str
    full_h: float
    incremental_h: float
    how: str = "any"


def read_inputs(arguments: Sequence[str]) -> dict[str, float | None]:
    """The inputs' values, some of them replaced. Exits with 2 at a name or number that is none."""
    values = {name: given.value for name, given in INPUTS.items()}
    for argument in arguments:
        name, _, text = argument.partition("=")
        try:
            if name not in values or not (number := float(text)) > 0:
                raise ValueError
        except ValueError:
            print(f"scale: {argument!r} is no NAME=NUMBER above 0; names: {', '.join(INPUTS)}",
                  file=sys.stderr)  # fmt: skip
            raise SystemExit(2) from None
        values[name] = number
    return values


def zipf_share(items: float, coverage: float, exponent: float) -> float:
    """Share of the items that get ``coverage`` of impressions of weight rank ** -exponent.

    Ranks to a thousand are summed, the others integrated.
    """
    head = [0.0, *accumulate(rank**-exponent for rank in range(1, _HEAD + 1))]

    def mass(n: float) -> float:
        if n < _HEAD:
            return head[int(n)]
        low, high = _HEAD + 0.5, n + 0.5
        if exponent == 1:
            return head[-1] + math.log(high / low)
        return head[-1] + (high ** (1 - exponent) - low ** (1 - exponent)) / (1 - exponent)

    few, many = 1.0, items
    for _ in range(200):
        middle = (few + many) / 2
        few, many = (middle, many) if mass(middle) < coverage * mass(items) else (few, middle)
    return many / items


def roofline(v: Mapping[str, float]) -> float:
    """Items a second on one GPU: 2 operations a parameter and token, and the images' tower."""
    tokens = v["images"] * v["image_tokens"] + v["text_tokens"]
    token = 2 * v["parameters"] / 1e12
    read = tokens * token + v["images"] * v["tower_tflop"]
    written = v["written_tokens"] * token
    return v["gpu_tflops"] / (read / v["prefill_mfu"] + written / v["decode_mfu"])


def parts_of(corpus: float, v: Mapping[str, float]) -> list[Part]:
    """What a run of everything takes, part by part, on one machine or GPU."""
    stale = corpus * v["stale_share"]
    cores = v["cores"]
    network = v["nic_gbit"] / 8 * 1e9

    def read_h(items: float) -> float:
        """Hours to read the media of some items, without looking at them."""
        return items * v["media_mb"] * 1e6 / network / 3600

    def hashed_h(items: float) -> float:
        return max(
            read_h(items), items * v["media_mb"] / 1e3 / v["hash_gb_per_core_s"] / cores / 3600
        )

    def decoded_h(items: float) -> float:
        return max(read_h(items), items / v["videos_per_core_s"] / cores / 3600)

    rows = v["items"] * v["events_per_item"]
    curated_h = rows / v["curate_rows_per_core_s"] / cores / 3600
    tree_h = v["items"] / v["tree_items_per_core_s"] / cores / 3600
    stored_h = corpus * v["plan_bytes"] / (v["store_mb_per_s"] * 1e6) / 3600
    checked_h = corpus * v["check_us"] / 1e6 / 3600
    sealed_h = corpus * v["plan_bytes"] / 1e9 / v["hash_gb_per_core_s"] / 3600
    return [
        Part("tree", "machine", tree_h, tree_h * v["stale_share"]),
        Part("curation and corpus", "machine", curated_h, curated_h),
        Part("stale check: hash changed media", "machine", hashed_h(corpus), hashed_h(stale)),
        Part("media: read and decode", "machine", decoded_h(corpus), decoded_h(stale)),
        Part("MLLM", "GPU", corpus / v["gpu_rate"] / 3600, stale / v["gpu_rate"] / 3600),
        Part(
            "plan store, and its hash", "machine", stored_h + sealed_h, stored_h + sealed_h, "one"
        ),
        Part("release: check every plan", "machine", checked_h, checked_h, "one"),
    ]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(value: float | None) -> str:
    """Three digits, with separators where they help."""
    if value is None:
        return "not measured"
    if value == 0 or value >= 1e6:
        return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def report(values: Mapping[str, float | None]) -> list[str]:
    """The blocks of docs/scale.md, in order."""
    v = {name: value for name, value in values.items() if value is not None}
    v["gpu_rate"] = v.get("bulk_per_gpu_s", roofline(v))
    v["usable_h"] = v["window_h"] * v["window_used"]
    corpora = {
        "head": v["items"] * zipf_share(v["items"], v["coverage"], v["zipf"]),
        "flat": v["items"] * v["flat_share"],
    }
    inputs = [[name, show(values[name]), g.kind, g.source] for name, g in INPUTS.items()]
    blocks = [table(["input", "value", "", "where it comes from"], inputs), _sizes(corpora, v)]
    for name, corpus in corpora.items():
        parts = parts_of(corpus, v)
        blocks += [_hours(name, parts, v["usable_h"]), f"{name}: {_fleet(parts, v['usable_h'])}"]
    return [*blocks, _limits(corpora["flat"], v)]


def _sizes(corpora: Mapping[str, float], v: Mapping[str, float]) -> str:
    seconds = v["usable_h"] * 3600
    rows = []
    for name, corpus in corpora.items():
        media_tb = corpus * v["media_mb"] / 1e6
        figures = (
            media_tb,
            media_tb * 8e3 / seconds,
            corpus * v["plan_bytes"] / 1e9,
            corpus / seconds,
            corpus / v["embedded_per_core_s"] / seconds,
        )
        rows.append([name, show(corpus), f"{corpus / v['items']:.1%}", *map(show, figures)])
    heads = ["corpus", "items", "of all", "media TB", "Gbit/s to read them once", "plans GB"]
    return table([*heads, "items/s to keep up", "cores, embedded model"], rows)


def _hours(name: str, parts: Sequence[Part], usable_h: float) -> str:
    rows = []
    for p in sorted(parts, key=lambda p: -p.full_h):
        row = [p.name, p.unit]
        for hours in (p.full_h, p.incremental_h):
            spread = show(max(1.0, -(-hours // usable_h)))
            row += [show(hours), f"1, {hours:.1f} h" if p.how == "one" else spread]
        rows.append([*row, f"{p.full_h / p.incremental_h:.1f}"])
    heads = [f"{name} corpus", "runs on", "full: hours on one", "needed in the window"]
    heads += ["incremental: hours on one", "needed in the window", "full / incremental"]
    return table(heads, rows)


def _limits(plans: float, v: Mapping[str, float]) -> str:
    """What the whole catalogue asks of one machine."""
    seconds = v["usable_h"] * 3600
    per_leaf = v["items"] / v["leaves"]
    row_bytes = (v["dimensions"] + 1) * 4
    matrix_gb = v["items"] * row_bytes / 1e9
    events = v["items"] * v["events_per_item"]
    duckdb = v["curate_rows_per_core_s"] * v["cores"] * seconds
    memory = f"{show(v['memory_gb'])} memory"
    how = "measured" if "bulk_per_gpu_s" in v else "roofline of assumed shares"
    copy_s = plans * v["plan_bytes"] * 8 / v["nic_gbit"] / 1e9
    scan_ms = per_leaf * row_bytes / v["scan_gb_per_core_s"] / 1e6
    shards = -(-matrix_gb // (v["memory_gb"] / 2))
    rows = [
        ["GPU rate used, items/s", show(v["gpu_rate"]), how],
        ["log rows in a window, DuckDB", show(events), f"{show(duckdb)} by rate"],
        [
            "cores for that log, Spark",
            show(events / v["spark_rows_per_core_s"] / seconds),
            f"{show(v['cores'])} a machine",
        ],
        ["vectors for the tree, GB", show(v["items"] * v["dimensions"] * 4 / 1e9), memory],
        [
            "retriever's item matrix, GB (int8)",
            f"{show(matrix_gb)} ({show(matrix_gb / 4)})",
            memory,
        ],
        ["its shards by leaf range, half the memory each", show(shards), "times replicas"],
        [
            "s to copy the flat corpus's plans to a server",
            show(copy_s),
            f"{show(v['nic_gbit'])} Gbit/s",
        ],
        ["items a leaf", show(per_leaf), f"{show(v['leaves'])} leaves"],
        ["ms to scan a leaf, one core", show(scan_ms), "float32, at memory speed"],
    ]
    return table(["what one machine meets", "here", "limit"], rows)


def _fleet(parts: Sequence[Part], usable_h: float) -> str:
    """What the fleet of a full run makes of an incremental one: media beside the MLLM."""
    of = {p.name.split(":")[0]: p for p in parts}
    gpus = -(-of["MLLM"].full_h // usable_h)
    reading = ("stale check", "media")
    machines = -(-sum(of[name].full_h for name in reading) // usable_h)
    full, less = (
        max(
            sum(getattr(of[name], run) for name in reading) / machines,
            getattr(of["MLLM"], run) / gpus,
        )
        for run in ("full_h", "incremental_h")
    )
    return (
        f"{machines:.0f} machines and {gpus:.0f} GPUs plan all of it in {show(full)} h, the "
        f"stale part in {show(less)} h, {full / less:.1f} times sooner."
    )


def main(arguments: Sequence[str]) -> None:
    print("\n\n".join(report(read_inputs(arguments))))


if __name__ == "__main__":
    main(sys.argv[1:])
