"""What the arguments of a diffusers pipeline's call say about its images."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

MODELS = ("unet", "transformer")
"""Names under which pipelines keep the model."""
USUAL_SIDE = 1024
"""Side of the images in pixels, where a pipeline does not say it."""

REFUSED = {
    "draws videos, and embeddings are of images": ("num_frames", "video_length"),
    "draws sound, and embeddings are of images": ("audio_length_in_s", "audio_end_in_s"),
    "computes more than two predictions a step, so that guidance cannot pause; use "
    "RepulsiveScheduler": ("pag_scale", "image_guidance_scale", "img_guidance_scale", "sag_scale"),
}
"""Refused pipelines: the reason, and arguments that only such pipelines take."""


def check_pipeline(pipe: Any) -> None:
    """Raises unless a pipeline is one of diffusers that draws images with one model."""
    name = type(pipe).__name__
    if not (callable(pipe) and hasattr(type(pipe), "components")):
        raise TypeError(f"pipe must be a pipeline of diffusers, got {name}")
    takes = set(inspect.signature(type(pipe).__call__).parameters)
    takes |= _modular_arguments(pipe).keys()
    reasons = [why for why, arguments in REFUSED.items() if takes & set(arguments)]
    if not any(getattr(pipe, part, None) is not None for part in MODELS):
        reasons.append("has neither a unet nor a transformer")
    if reasons:
        raise ValueError(
            f"pipe must be a pipeline that draws images, got {name}, which {reasons[0]}"
        )


def _modular_arguments(pipe: Any, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the arguments of a modular pipeline, which its signature does not name."""
    if not hasattr(pipe, "blocks"):
        return {}
    return {each.name: each.default for each in pipe.blocks.inputs if each.name} | dict(given or {})


def model_name(pipe: Any) -> str:
    """Returns the name under which a pipeline keeps its model."""
    return next(part for part in MODELS if getattr(pipe, part, None) is not None)


@dataclass(frozen=True)
class Call:
    """A call of a pipeline.

    Args:
        pipe: The pipeline.
        given: All arguments by name, defaults included.
    """

    pipe: Any
    given: dict[str, Any]

    @classmethod
    def of(cls, pipe: Any, signature: inspect.Signature, *args: Any, **kwargs: Any) -> "Call":
        """Returns the call of a pipeline with some arguments."""
        bound = signature.bind(pipe, *args, **kwargs)
        bound.apply_defaults()
        return cls(pipe, dict(bound.arguments) | _modular_arguments(pipe, kwargs))

    @property
    def images_per_prompt(self) -> int:
        return self.given.get("num_images_per_prompt") or 1

    @property
    def prompts(self) -> list[Any]:
        """The prompts; for text embeddings one None a row."""
        prompt, embeddings = self.given.get("prompt"), self.given.get("prompt_embeds")
        if prompt is None:
            return [None] * (1 if embeddings is None else len(embeddings))
        return [prompt] if isinstance(prompt, str) else list(prompt)

    @property
    def batch(self) -> int:
        """The number of images."""
        latents = self.given.get("latents")
        return len(self.prompts) * self.images_per_prompt if latents is None else len(latents)

    @property
    def group_size(self) -> int:
        """Number of neighbours that show one prompt: all images, if all prompts are equal."""
        several = self.images_per_prompt > 1 or len(set(self.prompts)) > 1
        return self.images_per_prompt if several else self.batch

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents, which some pipelines round."""
        latents = self.given.get("latents")
        if latents is not None and latents.ndim != 3:
            height, width = latents.shape[-2:]
            return height, width
        factor = getattr(self.pipe, "vae_scale_factor", None) or 8
        usual = self._usual_latent_size(factor)
        height, width = self.given.get("height"), self.given.get("width")
        return (
            max(height // factor, 1) if height else usual[0],
            max(width // factor, 1) if width else usual[1],
        )

    def _usual_latent_size(self, factor: int) -> tuple[int, int]:
        config = getattr(self.pipe, model_name(self.pipe)).config
        usual = getattr(self.pipe, "default_sample_size", None) or config.get("sample_size")
        if isinstance(usual, (list, tuple)):
            return usual[0], usual[1]
        usual = usual or USUAL_SIDE // factor
        return usual, usual

    @property
    def seed(self) -> int:
        """The seed of the generator, or of torch without one."""
        generator = self.given.get("generator")
        first = generator[0] if isinstance(generator, (list, tuple)) else generator
        seed = torch.initial_seed() if first is None else first.initial_seed()
        return seed % 2**63

    @property
    def embedded_scale(self) -> float | None:
        """The guidance scale that the model takes as an input; None if it takes none."""
        config = getattr(self.pipe, model_name(self.pipe)).config
        if not config.get("guidance_embeds"):
            return None
        return self.given.get("distilled_guidance_scale") or self.given.get("guidance_scale")

    @property
    def guided(self) -> bool:
        """Whether the model is guided; known once the pipeline's call has begun."""
        if (self.embedded_scale or 0) > 1:
            return True
        if "true_cfg_scale" in self.given:
            names = ("negative_prompt", "negative_prompt_embeds")
            negative = any(self.given.get(name) is not None for name in names)
            return negative and self.given["true_cfg_scale"] > 1
        guider = getattr(self.pipe, "guider", None)
        if guider is not None:
            return bool(guider._enabled and getattr(guider, "guidance_scale", 2) != 1)
        if hasattr(type(self.pipe), "do_classifier_free_guidance"):
            return bool(self.pipe.do_classifier_free_guidance)
        return (self.given.get("guidance_scale") or 0) > 1

    @property
    def why_not_all_steps(self) -> str | None:
        """Why the pipeline takes only some steps of the schedule, if it does."""
        strength, image = self.given.get("strength"), self.given.get("image")
        if strength is not None and image is not None and strength < 1:
            return f"image to image at strength {strength:g} starts late"
        names = ("denoising_start", "denoising_end")
        parts = [name for name in names if self.given.get(name) is not None]
        return f"{parts[0]}={self.given[parts[0]]} leaves steps out" if parts else None
