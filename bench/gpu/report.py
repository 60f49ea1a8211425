"""Writes the rows of a run as Markdown and plots the timings."""

from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.common import label_shapes

Row = dict[str, Any]


def table(rows: list[Row]) -> str:
    """Returns Markdown with one table for each kind of row."""
    lines = ["# On a GPU", "", "Made by `python -m bench.gpu`.", ""]
    for what in dict.fromkeys(row["what"].split()[0] for row in rows):
        own = [row for row in rows if row["what"].split()[0] == what]
        names = list(dict.fromkeys(name for row in own for name in row))
        lines += [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        for row in own:
            cells = (row.get(name, "") for name in names)
            shown = (f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells)
            lines.append(f"| {' | '.join(shown)} |")
        lines.append("")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> bool:
    """Plots the times of the force and the UNet; returns False without matplotlib."""
    if find_spec("matplotlib") is None:
        return False
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    force: dict[str, list[tuple[float, float]]] = defaultdict(list)
    unet: dict[str, list[tuple[float, float]]] = defaultdict(list)
    shapes = sorted({(row["N"], row["d"]) for row in rows if row["what"] == "force"})
    for row in rows:
        if row["what"] == "force":
            place = shapes.index((row["N"], row["d"]))
            force[f"{row['provider']}, {row['dtype']}"].append((place, row["ms"]))
        elif row["what"] == "unet" and "ms" in row:
            kind = "compiled" if row["compiled"] else "not compiled"
            unet[kind].append((row["batch"], row["ms/particle"]))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, 5), width_ratios=(2, 1))
    for axis, lines in ((left, force), (right, unet)):
        for label, points in lines.items():
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
        axis.grid(alpha=0.3, which="both")
        if lines:
            axis.legend(fontsize=7)
    label_shapes(left, shapes)
    right.set(xlabel="batch", ylabel="guided UNet, ms per particle", xscale="log", yscale="log")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return True
