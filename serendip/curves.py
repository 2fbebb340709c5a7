"""Curves of a training as an SVG file, the same bytes for the same numbers.

Knows no model and no metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        x: float[n], what ``xlabel`` says.
        lines: by label, float[n] each; a single one has no legend.
        from_zero: whether the axis of the values begins at 0.
    """

    xlabel: str
    ylabel: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    from_zero: bool = False


def draw_curves(path: Path, panels: Sequence[Panel]) -> None:
    """Draws panels side by side into an SVG file."""
    import matplotlib
    import matplotlib.figure

    with matplotlib.rc_context({"svg.hashsalt": "serendip"}):
        width = 4.5 * len(panels)
        figure = matplotlib.figure.Figure(figsize=(width, 3.6), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, ax in zip(panels, axes, strict=True):
            for label, values in panel.lines.items():
                ax.plot(panel.x, values, label=label, marker="o" if len(panel.x) < 3 else None)
            ax.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
            if panel.from_zero:
                ax.set_ylim(0, None)
            if len(panel.lines) > 1:
                ax.legend(fontsize="small")
        figure.savefig(path, metadata={"Date": None})
