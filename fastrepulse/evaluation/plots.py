"""Plots of diversity against quality, and grids of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastrepulse.evaluation.measure import Estimate, Row
from fastrepulse.evaluation.runs import Run
from fastrepulse.evaluation.settings import DEFAULT, FULL_CAPTIONS, INDEPENDENT
from fastrepulse.files import whole_file

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        'fastrepulse evaluate needs matplotlib: pip install "fastrepulse[evaluate]"'
    ) from error


@dataclass(frozen=True)
class Panel:
    """One panel of a plot; `value` returns the y value of a row."""

    title: str
    value: Callable[[Row], Estimate | float]
    share: bool = False
    """Whether the values are shares; the scale then magnifies values near 1."""


MARKERS = {INDEPENDENT.method: "s", FULL_CAPTIONS.method: "D", DEFAULT.method: "*"}
QUALITY = [
    Panel("prompt accuracy", lambda row: row.accuracy, share=True),
    Panel("distance off data (1: rendered)", lambda row: row.off_data),
    Panel("Fréchet distance to rendered pictures", lambda row: row.frechet),
]


def space_panels(rows: Sequence[Row]) -> list[Panel]:
    """Returns a panel with the distance to the images of full captions for each space."""

    def apart(space: str) -> Callable[[Row], float]:
        return lambda row: row.to_diverse[space].frechet

    return [Panel(f"{space}: Fréchet distance", apart(space)) for space in rows[0].to_diverse]


def plot_against_vendi(rows: Sequence[Row], panels: Sequence[Panel], file: Path) -> None:
    """Plots figures against the attribute Vendi score, with one colour for each method.

    A line connects the settings of one method. The suffix of the file gives the format.
    """
    methods = list(dict.fromkeys(row.setting.method for row in rows))
    others = [m for m in methods if m not in (INDEPENDENT.method, FULL_CAPTIONS.method)]
    # Without grey, the colour of independent samples and full captions
    tab10 = [colour for colour in matplotlib.color_sequences["tab10"] if len(set(colour)) > 1]
    palette = [*tab10, *matplotlib.color_sequences["Dark2"]]
    colours = {m: palette[i % len(palette)] for i, m in enumerate(others)}
    # Names stay text, and equal results give equal files
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastrepulse"}):
        figure = Figure(figsize=(4 * len(panels) + 3, 4.4), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            for method in methods:
                own = [row for row in rows if row.setting.method == method]
                ours = method == DEFAULT.method
                y = [panel.value(row) for row in own]
                drawn = axis.errorbar(
                    [row.attribute_vendi.mean for row in own],
                    [v.mean if isinstance(v, Estimate) else v for v in y],
                    # Interval of the paired difference, because prompts differ more than methods
                    xerr=_errors([row.gain for row in own]),
                    yerr=_errors([v for v in y if isinstance(v, Estimate)]),
                    color=colours.get(method, "0.35"),
                    label=method,
                    marker=MARKERS.get(method, "o"),
                    markersize=14 if ours else 5,
                    linewidth=2.4 if ours else 1.2,
                    elinewidth=0.8,
                    alpha=1 if ours else 0.8,
                    zorder=3 if ours else 2,
                )
                for bars in drawn.lines[2]:
                    bars.set_alpha(0.35)
            axis.set_xlabel("attribute Vendi score")
            axis.set_title(panel.title, fontsize=11)
            if panel.share:
                _magnify_near_one(axis)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
        metadata = {"Date": None} if file.suffix == ".svg" else None
        with whole_file(file) as partial:
            figure.savefig(partial, dpi=130, metadata=metadata)


def _magnify_near_one(axis: Axes) -> None:
    """Scales the y axis by -log(1.01 - y), because most values are near 1."""
    axis.set_yscale(
        "function", functions=(lambda y: -np.log(1.01 - y), lambda y: 1.01 - np.exp(-y))
    )
    low = min(0.9, axis.dataLim.y0)
    ticks = [tick for tick in (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1) if tick >= low - 0.1]
    axis.set_ylim(low - 0.02, 1.001)
    axis.set_yticks(ticks, [f"{tick:.0%}" for tick in ticks])


def _errors(estimates: Sequence[Estimate]) -> list[list[float]] | None:
    """Returns the lengths of the lower and upper error bars."""
    if not estimates:
        return None
    down, up = [e.mean - e.low for e in estimates], [e.high - e.mean for e in estimates]
    return [down, up]


def strength_grid(runs: Sequence[Run], prompt: int, num_particles: int) -> Image.Image:
    """Lays out images of one prompt: a row for each run, a column for each of 8 particles."""
    columns, label, gap = min(8, num_particles), 90, 2
    sheets = [run.sheet() for run in runs]
    side = sheets[0].width // num_particles
    size = (label + columns * (side + gap) - gap, len(runs) * (side + gap) - gap)
    grid = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(size=14)
    for row, (run, sheet) in enumerate(zip(runs, sheets, strict=True)):
        top = row * (side + gap)
        name = run.setting.strength or run.setting.method
        draw.text((label - 8, top + side // 2), name, fill="#333", font=font, anchor="rm")
        for column in range(columns):
            box = (column * side, prompt * side, (column + 1) * side, (prompt + 1) * side)
            grid.paste(sheet.crop(box), (label + column * (side + gap), top))
    return grid
