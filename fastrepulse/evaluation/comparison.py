"""The evaluation: samples, measures, and writes tables, plots and the report."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from fastrepulse.checks import check_choice, check_number
from fastrepulse.default_model.figures import PROMPTS
from fastrepulse.default_model.rendered import rendered_features
from fastrepulse.evaluation.guidance_front import compare_with_guidance
from fastrepulse.evaluation.measure import Row, measure
from fastrepulse.evaluation.plots import QUALITY, plot_against_vendi, space_panels
from fastrepulse.evaluation.report import write_report
from fastrepulse.evaluation.runs import Protocol, RunLog, figures_of, run_all
from fastrepulse.evaluation.search import CALIBRATION_SEEDS, Rule, search
from fastrepulse.evaluation.settings import (
    ALL,
    FULL_CAPTIONS,
    GUIDANCE,
    INDEPENDENT,
    Family,
    Setting,
)
from fastrepulse.evaluation.tables import compared, write_tables
from fastrepulse.files import write_text
from fastrepulse.models import SHIPPED, load_model
from fastrepulse.models.shipped import recommended
from fastrepulse.sampling.output import check_writable

DEFAULT_RULE = Rule()


def evaluate(
    out: str | Path,
    methods: Sequence[Setting | Family] = ALL,
    *,
    num_seeds: int = 10,
    num_particles: int = 16,
    model: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    dtype: torch.dtype | None = None,
    rule: Rule = DEFAULT_RULE,
    calibration_seeds: Sequence[int] = CALIBRATION_SEEDS,
    data: str | Path | None = None,
    compile: bool = True,
    progress: bool = True,
) -> list[Row]:
    """Compares methods on a shipped model's sparse prompts, from the same noise.

    A method with a strength is compared at the largest strength that keeps its images accurate and
    clean (`search.Rule`). The evaluation finds this strength on the calibration seeds.

    The folder keeps every finished run. A restarted evaluation resumes from them and samples only
    missing runs.

    Args:
        out: Folder for runs, `table.md`, `.csv` and `.json`, `quality.svg` and `.png`,
            `spaces.svg` and `.png`, and `report.html`.
        methods: The compared methods. Independent samples and full captions are added.
        num_seeds: Number of seeds, from 0 on.
        num_particles: Images N >= 2 for each prompt and seed.
        model: Name of a shipped model; by default the small one.
        num_inference_steps: Denoising steps of each run; by default those the model was made for.
        guidance_scale: Guidance scale, unless a setting has its own; by default the one that the
            model was made for.
        dtype: Data type of the model's weights. Default: float16 on a GPU, float32 on the CPU.
            bfloat16 takes a fifth less time on CPUs that multiply in it.
        rule: Rule for the strengths.
        calibration_seeds: Seeds on which the strengths are found.
        data: Folder with rendered pictures, `heldout.npz`. Default: the 1,600 shipped pictures.
        compile: Whether to use `torch.compile`.
        progress: Whether to show a progress bar.

    Returns:
        A row for each setting.

    Raises:
        ValueError: If a number is out of range, before the first run.
        FileNotFoundError: If `data` does not contain the file.
        OSError: If `out` is not writable.
    """
    if num_seeds < 1:
        raise ValueError(f"num_seeds must be at least 1, got {num_seeds}")
    if num_particles < 2:
        raise ValueError(f"num_particles must be at least 2, got {num_particles}")
    check_choice("model", model or "small", tuple(SHIPPED))
    steps, scale = recommended(model)
    steps = steps if num_inference_steps is None else num_inference_steps
    scale = scale if guidance_scale is None else guidance_scale
    check_number("guidance_scale", scale)
    folder = Path(out)
    check_writable(folder)
    rendered = rendered_features(None if data is None else Path(data))
    wanted = [
        each
        for each in methods
        if each not in (INDEPENDENT, FULL_CAPTIONS)
        # Independent samples have this scale already
        and not (each in GUIDANCE and each.arguments["guidance_scale"] == scale)
    ]
    loaded = load_model(model, dtype=dtype)
    dtype_name = str(loaded.dtype).removeprefix("torch.")
    name = model or "small"
    protocol = Protocol(num_particles, steps, float(scale), dtype_name, name)
    log = RunLog(folder, protocol)

    def calibrate(setting: Setting) -> list[dict[str, float]]:
        return figures_of(log, loaded, setting, calibration_seeds, compile, progress)

    settings, tried = search(wanted, calibrate, FULL_CAPTIONS, rule)
    settings = [FULL_CAPTIONS, INDEPENDENT, *settings]
    runs = run_all(log, loaded, settings, range(num_seeds), compile, progress)

    rows = compare_with_guidance(measure(runs, rendered, progress), float(scale))
    at_end = [name for name, record in tried["methods"].items() if record["ends"]]
    notes = _notes(num_seeds, protocol, rule, at_end)
    write_tables(folder, notes, rows)
    write_text(folder / "search.json", json.dumps(tried, indent=2) + "\n")
    diverse = compared(rows)
    for suffix in ("svg", "png"):
        plot_against_vendi(rows, QUALITY, folder / f"quality.{suffix}")
        panels = space_panels(diverse)
        plot_against_vendi(diverse, panels, folder / f"spaces.{suffix}")
    write_report(folder, notes, rows, runs, num_particles)
    return rows


def _notes(num_seeds: int, protocol: Protocol, rule: Rule, at_end: Sequence[str]) -> list[str]:
    """Explains how the figures were measured; `at_end` has the methods at the end of a range."""
    num_particles, steps = protocol.num_particles, protocol.num_inference_steps
    guidance = f"guidance {protocol.guidance_scale:g}"
    images = num_seeds * num_particles * len(PROMPTS)
    notes = [
        f"{len(PROMPTS)} sparse prompts, {num_seeds} seed{'s' * (num_seeds > 1)}, "
        f"{num_particles} images of each prompt and seed, {steps} Euler steps, {guidance}, "
        f"model {protocol.model}. All methods start from the same noise, or from a change of it. "
        "The features come from the shipped judge, a classifier that was never trained on "
        "samples.",
        "Diversity is the attribute Vendi score: the effective number of different images of a "
        "prompt, by the attributes that they show. Coverage is the share of the attributes' "
        "values that appear. Cleanliness is measured by “off data”: the distance of image patches "
        "to patches of rendered pictures of the subject, where rendered pictures have 1. "
        "Artefacts raise “off data” and do not raise the attribute Vendi score or the coverage.",
        "Each figure is a mean over all pairs of a prompt and a seed, with a 95% interval by the "
        "percentile bootstrap over these pairs. “over independent” is the difference to "
        "independent samples of the same prompt and noise. “× independent” is the ratio of “off "
        "data” to that of independent samples. “over guidance” is the difference to independent "
        "samples at the guidance scale that makes them most different, of all scales at which they "
        "are as clean, and as accurate to one percentage point. It is empty if there is no such "
        "scale, or if fewer than two scales were sampled.",
        "Methods with a strength are compared at the largest strength with a prompt accuracy of "
        f"at least {rule.accuracy:.0%} and “off data” of at most {rule.cleanliness:g} times the "
        "value of full captions. Full captions give the most varied images, as clean as the "
        "model draws them. The strengths were found on other seeds than this table uses "
        "(`search.json`)."
        + (f" The range of strengths ends there for {', '.join(at_end)}." if at_end else ""),
        "Fréchet distance, kernel distance, recall and the covered share of rendered pictures "
        f"compare all {images:,} images of a setting with rendered pictures, in which all values "
        "are equally common.",
    ]
    if images <= 256:
        notes.append(
            f"{images} images are fewer than the features have dimensions. Compare the Fréchet "
            "distances only with each other, not with evaluations of other sizes."
        )
    notes.append(
        f"Made on {platform.machine()}, CPU threads: {torch.get_num_threads()}, "
        f"torch {torch.__version__}, weights in {protocol.dtype}."
    )
    return notes
