"""Makes tables from the figures of every run and from the searches for strengths.

python -m bench.diversity.summary    # writes table.md of n16-methods and n64-methods
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from fastrepulse.evaluation.measure import Estimate
from fastrepulse.evaluation.tables import interval

FOLDER = Path(__file__).parent
TABLES = {
    "n16-methods": (
        "All methods, 16 particles, guidance 7.5",
        "two calibration seeds",
        "Two cores of a CPU (AVX-512), float32, the UNet compiled. The shipped model and default.",
    ),
    "n64-methods": (
        "All methods, 64 particles, guidance 5",
        "one calibration seed",
        "An H200, float32. An earlier shipped model and default (`thirds` 0.3, pause 9 to 0.6, no "
        "restart); in the search, push 9 to 3 and pause 9 to 1.2.",
    ),
}
"""By folder: the title, the seeds of the strength search, and the conditions."""
SHARES = ("coverage", "most_common", "accuracy")
HEAD = "| method | strength | seeds | attribute Vendi | default − this | coverage | most common "
HEAD += "| accuracy | off data | × independent | × full captions |"


def final(file: Path) -> list[str]:
    """Returns one row per setting with 95% bootstrap intervals over prompts and seeds.

    The default is compared with each method on that method's seeds.
    """
    runs: dict[tuple[str, str], dict[int, list[dict]]] = defaultdict(dict)
    for line in file.read_text().splitlines():
        run = json.loads(line)
        key = run["key"]
        runs[key["method"], key["strength"]][key["seed"]] = run["figures"]
    by_method = {method: seeds for (method, _), seeds in runs.items()}

    def values(method: str, seeds: Iterable[int], name: str) -> list[float]:
        return [each[name] for seed in seeds for each in by_method[method][seed]]

    lines = [HEAD, "|" + "---|" * 11]
    for (method, strength), seeds in runs.items():
        own, ours = (values(each, seeds, "attribute_vendi") for each in (method, "default"))
        ahead = Estimate.of([a - b for a, b in zip(ours, own, strict=True)])
        shares = (f"{Estimate.of(values(method, seeds, name)).mean:.1%}" for name in SHARES)
        off, *others = (
            Estimate.of(values(each, seeds, "off_data")).mean
            for each in (method, "independent", "full captions")
        )
        cells = [method, strength, str(len(seeds)), interval(Estimate.of(own))]
        cells += ["" if method == "default" else interval(ahead, "+.2f"), *shares]
        cells += [f"{off:.2f}", *(f"{off / other:.2f}" for other in others)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def searched(file: Path) -> list[str]:
    """Returns one row per method at the strength that the search found."""
    lines = [
        "| method | strength | accurate and clean | attribute Vendi | coverage | accuracy | off |"
    ]
    lines.append("|" + "---|" * 7)
    for method, found in json.loads(file.read_text())["methods"].items():
        curve = found["curve"]
        kept = [row for row in curve if row["holds"]] or curve[:1]
        best = max(kept, key=lambda row: row["strength"])
        cells = [method, f"{best['strength']:.3g}", "yes" if found["holds"] else "no"]
        cells += [f"{best['attribute_vendi']:.2f}", f"{best['coverage']:.1%}"]
        cells += [f"{best['accuracy']:.1%}", f"{best['off_data']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    for name, (title, seeds, note) in TABLES.items():
        folder = FOLDER / name
        lines = [f"# {title}", "", f"Eight sparse prompts, seeds from 0 on, 25 Euler steps. {note}"]
        lines += ["", *final(folder / "runs.jsonl"), ""]
        lines += [f"## Strengths found by the search, and their figures on {seeds}", ""]
        lines += searched(folder / "search.json")
        (folder / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
