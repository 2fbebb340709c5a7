"""What real checkpoints need of a device: worked out from their configs, nothing measured.

    ./build.sh bench footprint [--quick] [--model FILE ...] [--device NAME:GB:TFLOPS:GB_S ...]
        [--pictures 3] [--words 160] [--rank 16] [--batch 32] [--steps 200] [--markdown]

Parameters, bytes and operations are counted on the model without weights
(serendip/planning/footprint.py); the times are those of a device that reaches 40% of its peak of
operations and 60% of its bandwidth, whichever takes longer, and of nothing else: no decoding of
media, no Python, no transfer. They are a floor to plan by, and no figure of this project.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from serendip.planning.footprint import (
    Device,
    Footprint,
    Shape,
    Work,
    plan_seconds,
    read_seconds,
    rows_that_fit,
)

FOLDER = Path(__file__).parents[1] / "configs/models"
DEVICES = (  # peaks by the vendors' data sheets, bfloat16 without sparsity
    "24 GB (RTX 4090):24:165:1008",
    "80 GB (A100 SXM):80:312:2039",
    "141 GB (H200):141:989:4800",
    # Half a TFLOP/s a core needs bfloat16 in hardware (AMX); older ones reach a tenth.
    "16 CPU cores, 64 GB:64:8:100",
)
AT_ONCE = 32  # rows that bulk planning is estimated at, if they fit
FEW = 4  # fewer rows than that at once are not worth keeping all their states for
MICRO = 32  # the most rows that a training batch is made of


def main() -> None:
    """Prints three tables, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the same: it takes seconds")
    parser.add_argument("--model", type=Path, nargs="+", help="default: all of configs/models")
    parser.add_argument("--device", nargs="+", default=DEVICES, help="NAME:GB:TFLOPS:GB_S")
    parser.add_argument("--pictures", type=int, default=Work.pictures)
    parser.add_argument("--words", type=int, default=Work.words)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--markdown", action="store_true", help="as docs/real-models.md shows them")
    options = parser.parse_args()
    work = Work(pictures=options.pictures, words=options.words)
    paths = options.model or sorted(FOLDER.glob("*.toml"))
    needs = [Footprint.of(Shape.read(path), work) for path in paths]
    devices = [device(text) for text in options.device]
    style = box.MARKDOWN if options.markdown else box.HEAVY_HEAD
    wide = Console(highlight=False, width=400 if options.markdown else 160)
    wide.print(sizes(needs, options.rank, style))
    wide.print(times(needs, devices, options.rank, options.batch, options.steps, style))
    wide.print(settings(needs, devices, options.rank, options.batch, style))
    conditions = {"measured": False, "work": asdict(work), "rank": options.rank}
    conditions |= {"batch": options.batch, "steps": options.steps}
    conditions["devices"] = [asdict(d) for d in devices]
    figures = {need.shape.name: figures_of(need, devices, options.rank) for need in needs}
    print(json.dumps(
        {"bench": "footprint", "conditions": conditions, "figures": figures, "ratios": {}}
    ))  # fmt: skip


def device(text: str) -> Device:
    """A device of NAME:GB:TFLOPS:GB_S. Raises ValueError if it is none."""
    name, *numbers = text.rsplit(":", 3)
    return Device(name, *map(float, numbers))


def sizes(needs: list[Footprint], rank: int, style: box.Box) -> Table:
    """What is counted, whatever it runs on."""
    table = Table(
        "", "parameters, M: tower; layers; embeddings, head", "weights, GB", "tokens a picture",
        "prompt", "keys and values a row, MB", f"LoRA {rank}: M; MB with AdamW",
        "kept a row, GB: all; checkpointing", "TFLOP: read a prompt; learn a row",
        box=style,
    )  # fmt: skip
    for need in needs:
        parts, adapters = need.parts, need.adapters(rank)
        trained = need.training(0, rank, checkpointing=True) - need.weights
        table.add_row(
            need.shape.name.partition("/")[2],
            f"{parts.total / 1e6:,.0f}: {(parts.vision + parts.connector) / 1e6:,.0f}; "
            f"{parts.layers / 1e6:,.0f}; {parts.embeddings / 1e6:,.0f}",
            f"{need.weights / 1e9:.1f}",
            f"{need.seen.tokens:,}",
            f"{need.prompt:,}",
            f"{need.cache_row / 1e6:,.0f}",
            f"{adapters / 1e6:.1f}; {trained / 1e6:,.0f}",
            f"{need.kept(1, checkpointing=False) / 1e9:.1f}; "
            f"{need.kept(1, checkpointing=True) / 1e9:.2f}",
            f"{need.read_flops() / 1e12:.1f}; "
            f"{need.step_flops(1, rank, checkpointing=False) / 1e12:.1f}",
        )
    return table


def times(
    needs: list[Footprint], devices: list[Device], rank: int, batch: int, steps: int, style: box.Box
) -> Table:
    """What fits a device, and the least that it takes there."""
    table = Table(
        "", "device", "rows planned at once", "read a prompt, ms", "planned, items/s",
        "rows learnt at once: all kept; checkpointing", f"{steps} steps of {batch} rows",
        box=style,
    )  # fmt: skip
    for need in needs:
        for on in devices:
            found = on_device(need, on, rank)
            rows, micro = found["rows"], found["micro_checkpointing"]
            learnt = f"{found['step_row_s'] * batch * steps / 60:,.0f} min" if micro else "-"
            table.add_row(
                need.shape.name.partition("/")[2],
                on.name,
                f"{rows}" if rows else "does not fit",
                f"{found['read_s'] * 1e3:,.0f}" if rows else "-",
                f"{found['items_s']:.3g}" if rows else "-",
                f"{found['micro']}; {micro}",
                learnt,
            )
    return table


def settings(
    needs: list[Footprint], devices: list[Device], rank: int, batch: int, style: box.Box
) -> Table:
    """What to set: half of the rows that are expected to fit, for what is not known."""
    table = Table("accumulate; plans.batch_size", *(on.name for on in devices), box=style)
    for need in needs:
        cells = []
        for on in devices:
            found = on_device(need, on, rank)
            keeps = found["micro"] >= FEW
            micro = int(found["micro" if keeps else "micro_checkpointing"]) // 2
            learnt = (
                f"{max(1, batch // micro)}{'' if keeps else ', checkpointing'}" if micro else "-"
            )
            planned = min(AT_ONCE, int(found["rows"]) // 2)
            cells.append(f"{learnt}; {planned or '-'}")
        table.add_row(need.shape.name.partition("/")[2], *cells)
    return table


def on_device(need: Footprint, device: Device, rank: int) -> dict[str, float]:
    """Rows that fit, and seconds; a training row is run twice where its states do not fit."""
    training = partial(need.training, rank=rank)
    rows = rows_that_fit(device, need.planning)
    micro = rows_that_fit(device, partial(training, checkpointing=False), MICRO)
    again = rows_that_fit(device, partial(training, checkpointing=True), MICRO)
    at_once = max(1, min(rows, AT_ONCE))
    flops = need.step_flops(1, rank, checkpointing=not micro)
    return {
        "rows": rows,
        "micro": micro,
        "micro_checkpointing": again,
        "read_s": read_seconds(need, device, at_once) / at_once,
        "items_s": at_once / plan_seconds(need, device, at_once),
        "step_row_s": device.seconds(flops, 2 * need.weights / max(micro, again, 1)),
    }


def figures_of(need: Footprint, devices: list[Device], rank: int) -> dict[str, Any]:
    """The same as numbers."""
    return {
        "parameters": asdict(need.parts) | {"total": need.parts.total},
        "weights_bytes": need.weights,
        "prompt_tokens": need.prompt,
        "cache_row_bytes": need.cache_row,
        "lora_parameters": need.adapters(rank),
        "kept_row_bytes": need.kept(1, checkpointing=False),
        "kept_row_bytes_checkpointing": need.kept(1, checkpointing=True),
        "read_flops": need.read_flops(),
        "step_row_flops": need.step_flops(1, rank, checkpointing=False),
        "on": {device.name: on_device(need, device, rank) for device in devices},
    }


if __name__ == "__main__":
    main()
