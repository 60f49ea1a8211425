"""Tables of the figures that are kept of every run, and of the searches for strengths.

python bench/diversity/summary.py > bench/diversity/n16/table.md
"""

import json
from collections import defaultdict
from pathlib import Path

from fastrepulse.evaluation.measure import Estimate
from fastrepulse.evaluation.tables import interval

FOLDER = Path(__file__).parent
SHARES = ("coverage", "most_common", "accuracy")
HEAD = "| method | strength | attribute Vendi | default − this | coverage | most common | accuracy "
HEAD += "| off data | × independent | × full captions |"


def final(file: Path) -> list[str]:
    """A row for each setting, over all prompts and seeds, with 95% bootstrap intervals."""
    runs = defaultdict(list)
    for line in file.read_text().splitlines():
        run = json.loads(line)
        runs[run["key"]["method"], run["key"]["strength"]] += run["figures"]
    by_method = {method: figures for (method, _), figures in runs.items()}

    def values(figures: list[dict], name: str) -> list[float]:
        return [each[name] for each in figures]

    def off(figures: list[dict]) -> float:
        return Estimate.of(values(figures, "off_data")).mean

    lines = [HEAD, "|" + "---|" * 10]
    for (method, strength), figures in runs.items():
        own = values(figures, "attribute_vendi")
        ours = values(by_method["default"], "attribute_vendi")
        ahead = Estimate.of([a - b for a, b in zip(ours, own, strict=True)])
        shares = (f"{Estimate.of(values(figures, name)).mean:.1%}" for name in SHARES)
        quotients = (off(figures) / off(by_method[m]) for m in ("independent", "full captions"))
        cells = [method, strength, interval(Estimate.of(own))]
        cells += ["" if method == "default" else interval(ahead, "+.2f"), *shares]
        cells += [f"{off(figures):.2f}", *(f"{quotient:.2f}" for quotient in quotients)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def searched(file: Path) -> list[str]:
    """A row for each method at the strength that a search found, on the calibration seeds."""
    lines = [
        "| method | strength | keeps to the rule | attribute Vendi | coverage | accuracy | off |"
    ]
    lines.append("|" + "---|" * 7)
    for method, found in json.loads(file.read_text()).items():
        curve = found["curve"]
        kept = [row for row in curve if row["holds"]] or curve[:1]
        best = max(kept, key=lambda row: row["strength"])
        cells = [method, f"{best['strength']:.3g}", "yes" if found["holds"] else "not even here"]
        cells += [f"{best['attribute_vendi']:.2f}", f"{best['coverage']:.1%}"]
        cells += [f"{best['accuracy']:.1%}", f"{best['off_data']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    lines = ["# Sixteen particles, guidance 5", ""]
    lines += ["Eight sparse prompts, seeds 0 to 9, 25 Euler steps, float32, on an NVIDIA H100.", ""]
    lines += [*final(FOLDER / "n16" / "runs.jsonl"), ""]
    for count, seeds in (("16", "two calibration seeds"), ("64", "one calibration seed")):
        lines += [f"## Strengths found for {count} particles, and their figures on {seeds}", ""]
        lines += [*searched(FOLDER / f"search-n{count}.json"), ""]
    print("\n".join(lines))


if __name__ == "__main__":
    main()
