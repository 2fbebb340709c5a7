"""The planner on a GPU: the embedded model, and one of a real checkpoint's shape.

    ./build.sh bench gpu [--quick] [--device cuda|cpu] [--model FILE] [--repetitions 5]

The embedded model is trained for some steps and plans batches of pictures that are already
decoded. A Gemma 3 of the true shape of configs/models/gemma-3-4b-it.toml with random bfloat16
weights reads prompts of three pictures; answers by the engine and by a decoder that masks the
whole vocabulary (as bench decode, 8 beams, 100,000 descriptions); and takes LoRA steps with and
without gradient checkpointing. Beside bytes and operations stand those of bench footprint.

Without a GPU the same is run on one CPU thread in float32, and the large model with the same
vocabulary but few, narrow layers: that shows that it runs, and no figure of a GPU. Seconds are
wall-clock on a GPU, CPU seconds on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers
from common.timing import shown
from devices import embedded, real_shape
from devices.clock import Times
from rich.console import Console
from rich.table import Table

from serendip.planning.footprint import Footprint, Shape, Work
from serendip.progress import console

MODEL = Path(__file__).parents[1] / "configs/models/gemma-3-4b-it.toml"
T = TypeVar("T")
wide = Console(stderr=True, highlight=False, width=120)


@dataclass(frozen=True)
class Plan:
    """How much is measured: numbers of rows, and repetitions."""

    planned: tuple[int, ...]
    read: tuple[int, ...]
    answered: tuple[int, ...]
    learnt: tuple[int, ...]
    descriptions: int
    steps: int
    repetitions: int


ON_GPU = Plan((1, 32, 256), (1, 8, 32), (1, 32, 128), (1, 4, 8), 100_000, 20, 5)
ON_CPU = Plan((1, 32), (1, 8), (1, 8), (1, 2), 100_000, 2, 3)
QUICK = Plan((1, 8), (1, 2), (1, 2), (1,), 10_000, 1, 1)


def main() -> None:
    """Prints the tables, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: a GPU, if there is one")
    parser.add_argument("--model", type=Path, default=MODEL, help="the shape: one of Gemma 3")
    parser.add_argument("--repetitions", type=int)
    options = parser.parse_args()
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "bench gpu: torch sees no CUDA device: leave out --device, or say cpu\n")
    device = torch.device(name)
    gpu = name == "cuda"
    plan = QUICK if options.quick else (ON_GPU if gpu else ON_CPU)
    repetitions = options.repetitions or plan.repetitions
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    shape = Shape.read(options.model)
    if shape.config.model_type != "gemma3":
        parser.exit(2, f"bench gpu: {options.model}: made for Gemma 3, not {shape.name}\n")
    if not gpu:
        shape = real_shape.shrunk(shape)
        console.print("no GPU: on the CPU, in float32, the large model made small")
    tables, figures = measure_embedded(plan, device, repetitions)
    more, large, ratios = measure_large(shape, plan, device, repetitions)
    wide.print(*tables, *more)
    conditions = {
        "quick": options.quick,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "small": not gpu,
        "model": shape.name,
        "dtype": "bfloat16" if gpu else "float32",
        "clock": "wall-clock" if gpu else "CPU seconds",
        "repetitions": repetitions,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(
        {"bench": "gpu", "conditions": conditions, "figures": figures | large, "ratios": ratios}
    ))  # fmt: skip


def measure_embedded(
    plan: Plan, device: torch.device, repetitions: int
) -> tuple[list[Table], dict[str, Any]]:
    """The embedded model, in float32 on either device."""
    world = embedded.World.make(max(*plan.planned, embedded.BATCH))
    trained = embedded.training(world, device, repetitions, plan.steps)
    table = Table(f"embedded model, batches of {embedded.BATCH}", "ms")
    table.add_row("a training step", shown(trained["step"], 1e-3))
    table.add_row("its encoding, on the CPU", shown(trained["encode"], 1e-3))
    figures: dict[str, Any] = {"embedded_steps_per_s": 1 / middle(trained["step"])}
    planned = Table("embedded model, from pictures to 8 clusters", "encoding, ms", "model, ms")
    for rows in plan.planned:
        took = embedded.planning(world, device, rows, repetitions)
        planned.add_row(
            f"an item of {rows}", shown(took["encode"], 1e-3), shown(took["model"], 1e-3)
        )
        both = middle(took["encode"]) + middle(took["model"])
        figures[f"embedded_items_per_s_R{rows}"] = 1 / both
        console.print(f"embedded model: {rows} at once done")
    if device.type == "cuda":
        figures["embedded_scores_apart_from_cpu"] = embedded.agreement(world, device)
    return [table, planned], figures


def measure_large(
    shape: Shape, plan: Plan, device: torch.device, repetitions: int
) -> tuple[list[Table], dict[str, Any], dict[str, Any]]:
    """The model of a real shape: its tables, figures and ratios. What does not fit is left out."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    made = real_shape.Made.build(shape, device, dtype, plan.descriptions)
    work = Work(
        pictures=real_shape.PICTURES, words=real_shape.WORDS, answer=real_shape.ANSWER,
        height=896, width=896,
    )  # fmt: skip
    need = Footprint.of(shape, work)
    figures: dict[str, Any] = {"prompt_tokens": need.prompt}
    ratios: dict[str, Any] = {}
    read = Table("prompts read", "s", "tokens each", "TFLOP/s reached", "peak, GB", "estimated, GB")
    for rows in plan.read:
        found = fitting(lambda n=rows: real_shape.prefill(made, n, repetitions), f"{rows} read")
        if found is None:
            continue
        times, tokens, peak = found
        speed = rows * need.read_flops() / middle(times) / 1e12
        read.add_row(
            f"{rows}",
            shown(times, 1),
            f"{tokens:,}",
            f"{speed:.3g}",
            *gigabytes(peak, need.planning(rows)),
        )
        figures[f"prefill_R{rows}"] = {"s": middle(times), "tflops": speed, "peak_bytes": peak}
        console.print(f"{shape.name}: {rows} read at once done")
    vocabulary = f"V={need.text.vocabulary:,}"
    answered = Table(
        f"the answer, 8 beams, {vocabulary}", "full head, ms", "engine, ms", "ratio",
        "the same descriptions", "scores apart",
    )  # fmt: skip
    for rows in plan.answered:
        both = fitting(lambda n=rows: real_shape.answers(made, n, repetitions), f"{rows} answered")
        if both is None:
            continue
        ratio = middle(both.full_head) / middle(both.engine)
        ratios[f"vs_full_head_R{rows}_V262k"] = ratio
        answered.add_row(
            f"{rows} rows", shown(both.full_head, 1e-3), shown(both.engine, 1e-3), f"{ratio:.1f}x",
            f"{both.same:.2f}", f"{both.apart:.1e}",
        )  # fmt: skip
        figures[f"answer_R{rows}"] = {
            "engine_s": middle(both.engine), "full_head_s": middle(both.full_head),
            "same": both.same, "apart": both.apart,
        }  # fmt: skip
        console.print(f"{shape.name}: {rows} answered at once done")
    learnt = Table(
        f"a LoRA step, rank {real_shape.RANK}", "s", "TFLOP/s reached", "peak, GB", "estimated, GB"
    )
    adapted = real_shape.Adapted(made)
    for rows in plan.learnt:
        for again in (False, True):
            step = fitting(
                lambda n=rows, a=again: adapted.step(n, repetitions, checkpointing=a),
                f"{rows} learnt",
            )
            if step is None:
                continue
            times, peak = step
            rank = real_shape.RANK
            flops = need.step_flops(rows, rank, checkpointing=again)
            speed = flops / middle(times) / 1e12
            learnt.add_row(
                f"{rows} rows{', checkpointing' if again else ''}", shown(times, 1), f"{speed:.3g}",
                *gigabytes(peak, need.training(rows, rank, checkpointing=again)),
            )  # fmt: skip
            key = f"lora_step_R{rows}{'_checkpointing' if again else ''}"
            figures[key] = {"s": middle(times), "tflops": speed, "peak_bytes": peak}
        console.print(f"{shape.name}: {rows} learnt at once done")
    return [read, answered, learnt], figures, ratios


def fitting(call: Callable[[], T], what: str) -> T | None:
    """The result; None, and a line that says so, where the GPU's memory is too small."""
    try:
        return call()
    except torch.cuda.OutOfMemoryError:
        console.print(f"{what} at once do not fit this GPU")
    torch.cuda.empty_cache()  # what the error's frames held is free only now
    return None


def gigabytes(peak: int, estimated: int) -> tuple[str, str]:
    """What was in use on a GPU, and what was expected; on a CPU neither is known."""
    return (f"{peak / 1e9:.2f}", f"{estimated / 1e9:.2f}") if peak else ("-", "-")


def middle(times: Times) -> float:
    """The median."""
    return float(np.median(times))


if __name__ == "__main__":
    main()
