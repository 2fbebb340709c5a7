"""Draws the figures: curves over training steps, a band from the lowest seed to the highest.

Knows no model and no verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib.figure
import numpy as np
from PIL import Image

from serendip.evaluation.figures_study import FIGURES, MEASURES, Study
from serendip.evaluation.figures_verdict import Result

_DPI, _PANEL = 80, (3.1, 2.1)  # inches
_NAMES = {
    "recall_at_1": "recall_at_1\n(constrained)",
    "recall": "recall\n(free)",
    "match_rate": "match rate\n(free)",
}


def draw_figures(study: Study, results: Sequence[Result], folder: Path) -> list[Path]:
    """Writes figure3.png to figure5.png, those that have results; returns their paths."""
    settings = [(w, s) for w in study.worlds for s in study.starts]
    paths = []
    for number, (about, arms) in FIGURES.items():
        shown = [
            (setting, [r for r in results if (r.world, r.start) == setting and r.arm in arms])
            for setting in settings
        ]
        shown = [(setting, found) for setting, found in shown if found]
        if shown:
            paths.append(folder / f"figure{number}.png")
            _draw(about, arms, shown, paths[-1])
    return paths


def _draw(
    about: str,
    arms: Sequence[str],
    shown: Sequence[tuple[tuple[str, str], Sequence[Result]]],
    path: Path,
) -> None:
    size = (_PANEL[0] * max(2, len(shown)), _PANEL[1] * len(MEASURES) + 0.7)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(MEASURES), len(shown), sharex=True, sharey="row", squeeze=False)
    for column, ((world, start), found) in enumerate(shown):
        panels[0, column].set_title(f"{world} world, {start}", fontsize="medium")
        panels[-1, column].set_xlabel("fine-tuning steps")
        for row, measure in enumerate(MEASURES):
            panel = panels[row, column]
            for at, arm in enumerate(arms):
                runs = [r for r in found if r.arm == arm]
                if not runs:
                    continue
                curves = np.array([r.curve(measure) for r in runs])
                panel.plot(runs[0].steps, curves.mean(axis=0), f"C{at}.-", label=arm, linewidth=1.2)
                panel.fill_between(
                    runs[0].steps, curves.min(axis=0), curves.max(axis=0),
                    color=f"C{at}", alpha=0.15, linewidth=0,
                )  # fmt: skip
            panel.set_ylim(-0.02, 1.02)
            panel.grid(alpha=0.3)
            if not column:
                panel.set_ylabel(_NAMES[measure], fontsize="small")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
    figure.suptitle(f"{about} (simulated)", fontsize="medium")
    drawn = BytesIO()
    figure.savefig(drawn, dpi=_DPI)
    with Image.open(drawn) as image:  # as a palette: half of the bytes
        image.convert("RGB").quantize(method=Image.Quantize.FASTOCTREE).save(path, optimize=True)
