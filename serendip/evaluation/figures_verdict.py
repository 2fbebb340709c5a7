"""Whether a claim's ordering came out: the statistics of the figures. Knows no model.

The rule, fixed beforehand: both arms of a claim have judged the same held-out items in each seed.
The difference is the mean over seeds of the mean over items of (better - worse). Its standard
error is the larger of two: over items, std of the paired differences of all seeds / sqrt(their
number), and over seeds, std of the seeds' means / sqrt(seeds). Beyond two standard errors the
ordering is reproduced, or the reverse is; all else is within noise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serendip.evaluation.figures_study import (
    CLAIMS,
    FIGURES,
    MEASURES,
    Claim,
    Measure,
    Study,
)

Floats = npt.NDArray[np.float64]

REPRODUCED, REVERSED, NOISE = "reproduced", "not reproduced", "within noise"
_ERRORS = 2.0  # standard errors that noise reaches


@dataclass(frozen=True)
class Result:
    """What a run has come to.

    Attributes:
        steps: int64[L], after which it was judged.
        losses: float64[L], mean training loss there.
        hits: a measure's bool[L, N]: whether each of the N judged items is a hit.
    """

    world: str
    start: str
    arm: str
    seed: int
    steps: npt.NDArray[np.int64]
    losses: Floats
    hits: Mapping[Measure, npt.NDArray[np.bool_]]

    def curve(self, measure: Measure) -> Floats:
        """float64[L]: the share of hits at each look."""
        shares: Floats = self.hits[measure].mean(axis=1)
        return shares


@dataclass(frozen=True)
class Verdict:
    """How a claim came out in one setting.

    Attributes:
        difference: better - worse, as a share of the items.
        error: its standard error.
        said: REPRODUCED, REVERSED or NOISE.
    """

    difference: float
    error: float
    said: str


def judge(better: Sequence[Floats], worse: Sequence[Floats]) -> Verdict:
    """The verdict over seeds of two arms' values, float64[N] a seed, of the same items.

    >>> judge([np.ones(100), np.ones(100)], [np.zeros(100), np.zeros(100)]).said
    'reproduced'
    >>> judge([np.zeros(100)], [np.ones(100)]).said
    'not reproduced'
    >>> judge([np.ones(100)], [np.ones(100)]).said
    'within noise'
    >>> judge([np.ones(100), np.zeros(100)], [np.zeros(100), np.ones(100)]).said
    'within noise'
    """
    paired = [b - w for b, w in zip(better, worse, strict=True)]
    means = np.array([d.mean() for d in paired])
    items = np.concatenate(paired)
    errors = [float(items.std(ddof=1)) / math.sqrt(len(items)) if len(items) > 1 else 0.0]
    if len(means) > 1:
        errors.append(float(means.std(ddof=1)) / math.sqrt(len(means)))
    difference, error = float(means.mean()), max(errors)
    if abs(difference) <= _ERRORS * error or difference == 0:
        return Verdict(difference, error, NOISE)
    return Verdict(difference, error, REPRODUCED if difference > 0 else REVERSED)


def judge_claim(claim: Claim, measure: Measure, results: Iterable[Result]) -> Verdict | None:
    """A claim's verdict on the results of one world and start; None where an arm is missing."""
    values: dict[str, dict[int, Floats]] = {claim.better: {}, claim.worse: {}}
    for result in results:
        if result.arm in values:
            hits = result.hits[measure]
            values[result.arm][result.seed] = (
                hits.mean(axis=0) if claim.course else hits[-1].astype(np.float64)
            )
    better, worse = values[claim.better], values[claim.worse]
    seeds = sorted(better.keys() & worse.keys())
    return judge([better[s] for s in seeds], [worse[s] for s in seeds]) if seeds else None


def lines_of(results: Iterable[Result]) -> Iterable[dict[str, Any]]:
    """One JSON object a run and look: the figures' points."""
    for result in results:
        for at, step in enumerate(result.steps.tolist()):
            yield {
                "world": result.world,
                "start": result.start,
                "arm": result.arm,
                "seed": result.seed,
                "step": step,
                "loss": round(float(result.losses[at]), 4),
                "items": result.hits[MEASURES[0]].shape[1],
                **{measure: float(result.curve(measure)[at]) for measure in MEASURES},
            }


def write_table(study: Study, results: Sequence[Result], command: str) -> str:
    """The page that says what came out, in Markdown: verdicts, then the values at the end."""
    settings = [(w, s) for w in study.worlds for s in study.starts]
    verdicts: Counter[str] = Counter()
    body: list[str] = []
    for figure, (about, arms) in FIGURES.items():
        trained = [(s, [r for r in results if (r.world, r.start) == s]) for s in settings]
        columns = [(s, found) for s, found in trained if {r.arm for r in found} & set(arms)]
        if not columns:
            continue
        heads = " | ".join(f"{world}, {start}" for (world, start), _ in columns)
        body += [
            f"## Figure {figure}: {about}", "", f"![Figure {figure}](figure{figure}.png)", "",
            f"| ordering | judged on | {heads} |", "|---" * (len(columns) + 2) + "|",
        ]  # fmt: skip
        for claim in (c for c in CLAIMS if c.figure == figure):
            for measure in claim.measures:
                found = [judge_claim(claim, measure, results) for _, results in columns]
                if claim.papers:
                    verdicts.update(v.said for v in found if v)
                if any(found):
                    on = f"{measure}, {'mean over the looks' if claim.course else 'at the end'}"
                    text = claim.text if claim.papers else f"*{claim.text}* (not in the paper)"
                    body.append(f"| {text} | {on} | {' | '.join(map(_cell, found))} |")
        body += [
            "", f"At the end, mean over seeds (lowest to highest): {', '.join(MEASURES)}.", "",
            f"| prompt | {heads} |", "|---" * (len(columns) + 1) + "|",
        ]  # fmt: skip
        for arm in arms:
            ends = [_ends([r for r in found if r.arm == arm]) for _, found in columns]
            if any(ends):
                body.append(f"| {arm} | {' | '.join(ends)} |")
        body.append("")
    runs, seeds = len(results), study.seeds
    return "\n".join(
        [
            f"<!-- Made by `{command}`. Do not edit. -->",
            "",
            f"*Simulated.* `{command}`: {runs} runs of {study.steps} steps with batches of "
            f"{study.batch_size}, {seeds} seed{'s' * (seeds > 1)}, each with worlds of its own, "
            f"judged on at most {study.judged} held-out items a seed. A cell is by how many of 100 "
            "items the arm that the ordering puts first is ahead, ± the standard error: the larger "
            "of that over paired items and that over seeds. Beyond "
            f"{_ERRORS:g} standard errors the ordering is **{REPRODUCED}**, or **{REVERSED}**: the "
            f"reverse came out; else it is {NOISE}.",
            "",
            f"Of the paper's orderings, {sum(verdicts.values())} comparisons: "
            + ", ".join(f"{verdicts[v]} {v}" for v in (REPRODUCED, REVERSED, NOISE))
            + ". At that many, a few pass two standard errors by chance alone.",
            "",
            *body,
        ]
    )


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    said = verdict.said if verdict.said == NOISE else f"**{verdict.said}**"
    return f"{said} {100 * verdict.difference:+.1f} ± {100 * verdict.error:.1f}"


def _ends(results: Sequence[Result]) -> str:
    if not results:
        return ""
    shown = []
    for measure in MEASURES:
        ends = [float(r.curve(measure)[-1]) for r in results]
        spread = f" ({min(ends):.2f}-{max(ends):.2f})" if len(ends) > 1 else ""
        shown.append(f"{sum(ends) / len(ends):.3f}{spread}")
    return "; ".join(shown)
