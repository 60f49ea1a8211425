"""The whole evaluation: sample, measure, and write tables, plots and the report."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from fastrepulse.checks import check_number
from fastrepulse.default_model.figures import PROMPTS
from fastrepulse.default_model.rendered import rendered_features
from fastrepulse.evaluation.measure import Row, measure, rendered_vendi
from fastrepulse.evaluation.plots import QUALITY, plot_against_vendi, space_panels
from fastrepulse.evaluation.report import write_report
from fastrepulse.evaluation.runs import Protocol, RunLog, figures_of, run_all
from fastrepulse.evaluation.search import CALIBRATION_SEEDS, Rule, search
from fastrepulse.evaluation.settings import ALL, FULL_CAPTIONS, INDEPENDENT, Family, Setting
from fastrepulse.evaluation.tables import compared, write_tables
from fastrepulse.models import load_model
from fastrepulse.sampling.output import check_writable
from fastrepulse.sampling.sample import DEFAULT_GUIDANCE_SCALE, DEFAULT_STEPS

DEFAULT_RULE = Rule()


def evaluate(
    out: str | Path,
    methods: Sequence[Setting | Family] = ALL,
    *,
    num_seeds: int = 10,
    num_particles: int = 16,
    num_inference_steps: int = DEFAULT_STEPS,
    guidance_scale: float = DEFAULT_GUIDANCE_SCALE,
    dtype: torch.dtype | None = None,
    rule: Rule = DEFAULT_RULE,
    calibration_seeds: Sequence[int] = CALIBRATION_SEEDS,
    data: str | Path | None = None,
    compile: bool = True,
    progress: bool = True,
) -> list[Row]:
    """Compares methods on the shipped model's sparse prompts, each from the same noise.

    A method with a strength is compared at the largest one that keeps its pictures right and clean
    (`search.Rule`), which the evaluation finds on seeds of its own.

    Every finished run is kept in the folder: started again, the evaluation goes on where it
    stopped, and other tables and plots are made without sampling.

    Args:
        out: Folder for runs, `table.md`, `.csv` and `.json`, `quality.svg` and `.png`,
            `spaces.svg` and `.png`, and `report.html`.
        methods: What is compared; independent samples and those of full captions are added.
        num_seeds: From how many seeds, 0 to `num_seeds` - 1.
        num_particles: N >= 2 of each prompt and seed.
        num_inference_steps: T of every run.
        guidance_scale: Of every run, but for settings with one of their own.
        dtype: Of the shipped model's weights; by default float16 on a GPU and float32 on the CPU,
            where bfloat16 takes a fifth less time if the processor multiplies in it.
        rule: What a method's strength must keep.
        calibration_seeds: On which it is found.
        data: A folder with rendered pictures, `heldout.npz`; by default the 1,600 that ship.
        compile: Whether to run the model through `torch.compile`.
        progress: Whether to show a progress bar.

    Returns:
        A row for each setting.

    Raises:
        ValueError: If a number is out of range; before the first run.
        FileNotFoundError: If `data` holds no such file.
        OSError: If `out` cannot be written.
    """
    if num_seeds < 1:
        raise ValueError(f"num_seeds must be at least 1, got {num_seeds}")
    if num_particles < 2:
        raise ValueError(f"num_particles must be at least 2, got {num_particles}")
    check_number("guidance_scale", guidance_scale)
    folder = Path(out)
    check_writable(folder)
    rendered = rendered_features(None if data is None else Path(data))
    wanted = [each for each in methods if each not in (INDEPENDENT, FULL_CAPTIONS)]
    model = load_model(dtype=dtype)
    dtype_name = str(model.dtype).removeprefix("torch.")
    protocol = Protocol(num_particles, num_inference_steps, float(guidance_scale), dtype_name)
    log = RunLog(folder, protocol)

    def calibrate(setting: Setting) -> list[dict[str, float]]:
        return figures_of(log, model, setting, calibration_seeds, compile, progress)

    settings, tried = search(wanted, calibrate, FULL_CAPTIONS, rule)
    settings = [FULL_CAPTIONS, INDEPENDENT, *settings]
    runs = run_all(log, model, settings, range(num_seeds), compile, progress)

    rows = measure(runs, rendered, progress)
    ceiling = rendered_vendi(rendered, num_particles)
    notes = _notes(num_seeds, protocol, ceiling, rule)
    write_tables(folder, notes, rows)
    (folder / "search.json").write_text(json.dumps(tried, indent=2) + "\n", "utf-8")
    diverse = compared(rows)
    for suffix in ("svg", "png"):
        plot_against_vendi(rows, QUALITY, folder / f"quality.{suffix}")
        panels = space_panels(diverse)
        plot_against_vendi(diverse, panels, folder / f"spaces.{suffix}")
    write_report(folder, notes, rows, runs, num_particles)
    return rows


def _notes(num_seeds: int, protocol: Protocol, rendered: float, rule: Rule) -> list[str]:
    """Says how the figures were made."""
    num_particles, steps = protocol.num_particles, protocol.num_inference_steps
    guidance = f"guidance {protocol.guidance_scale:g}"
    pictures = num_seeds * num_particles * len(PROMPTS)
    notes = [
        f"{len(PROMPTS)} sparse prompts, {num_seeds} seed{'s' * (num_seeds > 1)}, "
        f"{num_particles} particles each, {steps} Euler steps, {guidance}; every method starts "
        "from the same noise. Features are those of the shipped judge, which never saw a sample.",
        "The attribute Vendi score is the effective number of different pictures of a prompt by "
        "the attributes that they show; coverage is the share of the attributes' values that "
        "appear; off data is the distance of patches to those of rendered pictures of the subject, "
        "1 for rendered pictures. Dirt raises the last and neither of the others. All are means "
        "over all pairs of a prompt and a seed, with 95% intervals by the percentile bootstrap "
        "over those pairs; “over independent” is the difference to independent samples of the same "
        "prompt and noise, “× independent” the quotient of off data.",
        "Every method that was searched has the largest strength at which prompt accuracy is at "
        f"least {rule.accuracy:.0%} and off data at most {rule.cleanliness:g} times that of full "
        "captions, which are as varied as can be and as clean as the model draws them; it was "
        "found on seeds that are not in this table (`search.json`).",
        f"Fréchet and kernel distance, recall and the share of rendered pictures covered are those "
        f"of all {pictures:,} pictures of a setting against rendered ones, in which every value is "
        f"equally common. {num_particles} rendered pictures of a subject have a Vendi score of "
        f"features of {rendered:.2f}.",
    ]
    if pictures <= 256:
        notes.append(
            f"{pictures} pictures are fewer than the features have dimensions: Fréchet distances "
            "can be compared with each other here, not with those of other sizes."
        )
    notes.append(
        f"Made on {platform.machine()}, CPU threads: {torch.get_num_threads()}, "
        f"torch {torch.__version__}, weights in {protocol.dtype}."
    )
    return notes
