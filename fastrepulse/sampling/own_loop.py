"""`sample()` for pipelines with a transformer, which keep the loop that diffusers gave them."""

import inspect
from typing import Any

import torch

from fastrepulse.checks import plain
from fastrepulse.integrations.call import check_pipeline
from fastrepulse.integrations.micro_batches import MicroBatches
from fastrepulse.integrations.pipeline_run import How
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.models.pipeline import is_pipeline
from fastrepulse.sampling.request import Computing, Drawing, Output
from fastrepulse.sampling.results import SampleResult

SERVED = (
    *("prompt", "num_particles", "model", "repulsion", "num_inference_steps", "guidance_scale"),
    *("negative_prompt", "height", "width", "seed", "generator", "latents"),
    *("micro_batch_size", "out", "progress"),
)
"""Arguments of `sample` that such a pipeline serves."""


def keeps_its_loop(model: Any) -> bool:
    """Whether a model is a pipeline with a transformer in the place of a UNet."""
    return is_pipeline(model) and getattr(model, "transformer", None) is not None


def sample_in_own_loop(given: dict[str, Any], defaults: dict[str, Any]) -> SampleResult:
    """Draws what `sample` is asked for with `repel`'s micro-batches.

    Args:
        given: All arguments of `sample`.
        defaults: Their defaults.

    Raises:
        ValueError: If an argument has no meaning for the pipeline; names it and the pipeline.
    """
    pipe = given["model"]
    check_pipeline(pipe)
    name = type(pipe).__name__
    for argument, value in given.items():
        if argument not in SERVED and value != defaults[argument]:
            raise ValueError(
                f"{argument} must be {defaults[argument]!r} for {name}, which keeps its own loop, "
                f"got {value!r}"
            )
    drawing = Drawing(**{key: given[key] for key in SERVED if key in Drawing.__annotations__})
    computing = Computing(given["micro_batch_size"])
    output = Output(given["out"], progress=given["progress"])
    output.check_new()
    if not (drawing.method is None or isinstance(drawing.method, Repulsion)):
        kind = type(drawing.method).__name__
        raise ValueError(f"repulsion must be a Repulsion, a name or None for {name}, got {kind}")
    count, seed = drawing.num_particles, drawing.noise_seed
    size = min(computing.micro_batch_size or count, count)
    active = drawing.active_method
    repulsion = active if isinstance(active, Repulsion) else Repulsion(strength=0)
    call = _arguments(drawing, given)
    drawn = []
    for prompt, negative in zip(drawing.prompts, drawing.negative_prompts, strict=True):
        own = call | ({"negative_prompt": negative} if "negative_prompt" in call else {})
        generators = [_generator(seed, i) for i in range(count)]
        how = How(repulsion, seed=seed)
        drawn.append(MicroBatches(pipe, how, prompt, generators, size, own, output.progress).draw())
    images = [image for output_of_prompt, _ in drawn for image in output_of_prompt.images]
    settings = plain(
        {key: given[key] for key in SERVED if key not in ("model", "latents", "generator", "out")}
        | {"prompts": drawing.prompts, "seed": seed, "model": name}
        | {"repulsion": drawing.method.settings() if drawing.method else None}
        | {"latents_given": drawing.latents is not None}
    )
    result = SampleResult(images, torch.cat([latents for _, latents in drawn]), [], settings)
    if output.folder is not None:
        result.save(output.folder)
    return result


def _arguments(drawing: Drawing, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the pipeline; without a value it has its own default."""
    pipe = given["model"]
    takes = inspect.signature(pipe.__call__).parameters
    scale = given["guidance_scale"]
    real = "true_cfg_scale" in takes and not pipe.transformer.config.get("guidance_embeds")
    asked = {
        "num_inference_steps": given["num_inference_steps"],
        "true_cfg_scale" if real else "guidance_scale": scale,
        "height": drawing.height,
        "width": drawing.width,
        "latents": drawing.latents,
        # Some pipelines are guided only if there is a negative prompt
        "negative_prompt": "" if any(drawing.negative_prompts) or (real and scale) else None,
    }
    call = {name: value for name, value in asked.items() if value is not None}
    unknown = [name for name in call if name not in takes]
    if unknown:
        raise ValueError(f"{unknown[0]} must be left out for {type(pipe).__name__}")
    return call


def _generator(seed: int, particle: int) -> torch.Generator:
    """Returns the generator of one particle."""
    return torch.Generator().manual_seed((seed * 1_000_003 + particle) % 2**63)
