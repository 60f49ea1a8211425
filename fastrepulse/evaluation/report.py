"""The report: one HTML file with tables, plots and images, which loads no other file."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

from fastrepulse.default_model.figures import PROMPTS
from fastrepulse.evaluation.measure import Row, better_than
from fastrepulse.evaluation.plots import strength_grid
from fastrepulse.evaluation.runs import Run
from fastrepulse.evaluation.settings import DEFAULT, FULL_CAPTIONS, INDEPENDENT
from fastrepulse.evaluation.tables import DIVERSITY, Column, compared, interval, space_columns
from fastrepulse.files import write_text

FOLDER = Path(__file__).parent


def write_report(
    folder: Path,
    notes: Sequence[str],
    rows: Sequence[Row],
    runs: Mapping[str, Sequence[Run]],
    num_particles: int,
) -> None:
    """Writes `report.html` with the plots from the folder."""
    diverse = compared(rows)
    grids = [
        f"<details{' open' if i == 0 else ''}><summary>{escape(prompt)}</summary>"
        f'<div class="grids">{_grids(runs, i, num_particles)}</div></details>'
        for i, prompt in enumerate(PROMPTS)
    ]
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>fastrepulse: diversity and quality</title>
<style>{(FOLDER / "report.css").read_text("utf-8")}</style>
</head>
<body>
<h1>Diversity and quality on the shipped model</h1>
{"".join(f"<p>{escape(note)}</p>" for note in notes)}
{"".join(f'<p class="verdict">{escape(line)}</p>' for line in verdict(rows))}
<h2>Diversity against quality</h2>
{_picture(folder / "quality.svg", "attribute Vendi score against quality")}
{_table(DIVERSITY, rows)}
<h2>Distance to the set of maximum diversity</h2>
<p>The set of maximum diversity has equally many independent samples of full captions, which name
every attribute. The set of minimum diversity has independent samples of the sparse prompts. A lower
distance is better. “nearer by” is the decrease of the kernel distance compared with independent
samples of the same seed, with its 95% interval; it needs several seeds.</p>
{_picture(folder / "spaces.svg", "attribute Vendi score against distances in three spaces")}
{_table(space_columns(diverse), diverse)}
<h2>Images</h2>
<p>Each row is one strength. Images in one column start from the same noise.</p>
{"".join(grids)}
<script>{(FOLDER / "report.js").read_text("utf-8")}</script>
</body>
</html>
"""
    write_text(folder / "report.html", page)


def verdict(rows: Sequence[Row]) -> list[str]:
    """Summarises the default repulsion: its gain, and methods with a higher diversity."""
    default = next((row for row in rows if row.setting == DEFAULT), None)
    if default is None:
        return []
    independent = next(row for row in rows if row.setting == INDEPENDENT)
    lines = [
        "Compared with independent samples, the default repulsion changes the attribute Vendi "
        f"score by {interval(default.gain, '+.2f')} from {independent.attribute_vendi.mean:.2f}, "
        f"the prompt accuracy from {independent.accuracy.mean:.1%} to "
        f"{default.accuracy.mean:.1%}, and multiplies “off data” by {default.cleanliness:.2f}."
    ]
    better = better_than(default, rows)
    if better:
        names = "; ".join(
            f"{row.setting.title} by {interval(row.gain_over(default))}" for row in better
        )
        lines.append(
            f"Other methods with a higher attribute Vendi score, at an accuracy at most 1 "
            f"percentage point lower: {names}."
        )
    else:
        lines.append(
            "No other method has a significantly higher attribute Vendi score at an accuracy at "
            "most 1 percentage point lower."
        )
    nearer = [
        # A single seed has no interval
        f"{space} (significant)" if 0 < by.low < by.high else space
        for (space, distance), by in zip(
            default.to_diverse.items(), default.nearer.values(), strict=True
        )
        if distance.frechet < independent.to_diverse[space].frechet
    ]
    lines.append(
        "By the Fréchet distance, it is nearer to the set of maximum diversity than independent "
        f"samples in {len(nearer)} of {len(default.to_diverse)} spaces"
        f"{': ' + ', '.join(nearer) if nearer else ''}."
    )
    return lines


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    lines, before = [], None
    for row in rows:
        kinds = "first" if row.setting.method != before else ""
        kinds += " default" if row.setting == DEFAULT else ""
        before = row.setting.method
        cells = "".join(f"<td>{escape(cell(row))}</td>" for _, cell in columns)
        method = f'data-method="{escape(row.setting.method)}" tabindex="0"'
        lines.append(f'<tr class="{kinds}" {method}>{cells}</tr>')
    head = "".join(f"<th><button>{escape(title)}</button></th>" for title, _ in columns)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _grids(runs: Mapping[str, Sequence[Run]], prompt: int, num_particles: int) -> str:
    """Returns a grid of the first seed for each method, with independent samples on top."""
    first = {title: own[0] for title, own in runs.items()}
    independent = first[INDEPENDENT.title]
    methods = list(dict.fromkeys(run.setting.method for run in first.values()))
    # Independent samples are the first row of every grid; full captions come last
    methods.remove(INDEPENDENT.method)
    methods.sort(key=FULL_CAPTIONS.method.__eq__)
    shown = []
    for method in methods:
        own = [run for run in first.values() if run.setting.method == method]
        rows = own if method == FULL_CAPTIONS.method else [independent, *own]
        grid, buffer = strength_grid(rows, prompt, num_particles), BytesIO()
        grid.save(buffer, "JPEG", quality=85)
        image = _data_uri("image/jpeg", buffer.getvalue(), method, grid.width)
        shown.append(f"<div><h3>{escape(method)}</h3>{image}</div>")
    return "".join(shown)


def _picture(file: Path, alt: str) -> str:
    return _data_uri("image/svg+xml", file.read_bytes(), alt)


def _data_uri(kind: str, content: bytes, alt: str, width: int | None = None) -> str:
    data = base64.b64encode(content).decode()
    size = f' width="{width}"' if width else ""
    return f'<img alt="{escape(alt)}"{size} src="data:{kind};base64,{data}">'
