"""The figures as Markdown, CSV and JSON."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastrepulse.evaluation.measure import PER_PROMPT, Estimate, Row
from fastrepulse.evaluation.settings import FULL_CAPTIONS, INDEPENDENT
from fastrepulse.files import whole_file, write_text

Column = tuple[str, Callable[[Row], str]]


def interval(estimate: Estimate, form: str = ".2f") -> str:
    return f"{estimate.mean:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def _gain(row: Row) -> str:
    known = row.setting in (INDEPENDENT, FULL_CAPTIONS)
    return "" if known else interval(row.gain, "+.2f")


def number(value: float) -> str:
    """Formats a number with three digits, or in full from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _apart(space: str, name: str) -> Callable[[Row], str]:
    return lambda row: number(getattr(row.to_diverse[space], name))


def _nearer(space: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        by = row.nearer[space]
        known = row.setting == INDEPENDENT
        return "" if known else f"{number(by.mean)} [{number(by.low)}, {number(by.high)}]"

    return cell


DIVERSITY: list[Column] = [
    ("method", lambda row: row.setting.method),
    ("strength", lambda row: row.setting.strength),
    ("attribute Vendi", lambda row: interval(row.attribute_vendi)),
    ("over independent", _gain),
    ("over guidance", lambda row: interval(row.over_guidance, "+.2f") if row.over_guidance else ""),
    ("attribute coverage", lambda row: f"{row.coverage.mean:.1%}"),
    ("most common value", lambda row: f"{row.most_common.mean:.1%}"),
    ("prompt accuracy", lambda row: f"{row.accuracy.mean:.1%}"),
    ("off data", lambda row: f"{row.off_data.mean:.2f}"),
    ("× independent", lambda row: f"{row.cleanliness:.3f}"),
    ("Fréchet", lambda row: f"{row.frechet:.0f}"),
    ("kernel", lambda row: f"{row.kernel:.1f}"),
    ("recall", lambda row: f"{row.recall:.1%}"),
    ("rendered covered", lambda row: f"{row.covered:.1%}"),
    ("Vendi of features", lambda row: f"{row.vendi.mean:.2f}"),
]
"""The columns of the first table: diversity, accuracy and cleanliness."""


def space_columns(rows: Sequence[Row]) -> list[Column]:
    """Returns the columns of the second table: distances to the images of full captions."""
    columns = DIVERSITY[:2]
    # A single seed has no interval
    several = any(by.low < by.high for row in rows for by in row.nearer.values())
    for space in rows[0].to_diverse:
        columns = [
            *columns,
            (f"{space}: Fréchet", _apart(space, "frechet")),
            ("kernel", _apart(space, "kernel")),
            *([("nearer by", _nearer(space))] if several else []),
        ]
    return columns


def compared(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of the second table: all except full captions."""
    return [row for row in rows if row.to_diverse]


def markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    lines = [[title for title, _ in columns], ["---"] * len(columns)]
    lines += [[cell(row) for _, cell in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


ENDS = {"": "mean", "_low": "low", "_high": "high"}


def flat(row: Row) -> dict[str, Any]:
    """Returns a row as a flat record, with the ends of intervals as `_low` and `_high`."""
    record: dict[str, Any] = {"method": row.setting.method, "strength": row.setting.strength}
    for name in (*PER_PROMPT, "gain"):
        record |= {f"{name}{end}": getattr(getattr(row, name), at) for end, at in ENDS.items()}
    for name in ("cleanliness", "frechet", "kernel", "recall", "covered"):
        record[name] = getattr(row, name)
    for space, distance in row.to_diverse.items():
        by = row.nearer[space]
        record |= {f"{space}_{name}": value for name, value in asdict(distance).items()}
        record |= {f"{space}_nearer{end}": getattr(by, name) for end, name in ENDS.items()}
    return record


def write_tables(folder: Path, notes: Sequence[str], rows: Sequence[Row]) -> None:
    """Writes `table.md`, `table.csv` and `table.json`."""
    diverse = compared(rows)
    parts = [
        "# Diversity and quality on the shipped model\n",
        *(f"{note}\n" for note in notes),
        markdown(DIVERSITY, rows),
        "## Distance to the set of maximum diversity\n",
        markdown(space_columns(diverse), diverse),
    ]
    write_text(folder / "table.md", "\n".join(parts))
    records = [flat(row) for row in rows]
    write_text(folder / "table.json", json.dumps(records, indent=2) + "\n")
    fields = max((list(record) for record in records), key=len)
    with (
        whole_file(folder / "table.csv") as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(records)
