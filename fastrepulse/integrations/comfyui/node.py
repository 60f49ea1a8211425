"""The node: MODEL in, MODEL out; the images of a batch repel each other at every step."""

from typing import Any

from torch import Tensor

from fastrepulse import embeddings
from fastrepulse.integrations import corrected_denoised
from fastrepulse.integrations.functional import PUSH_ALONE, for_latents
from fastrepulse.methods.repulsion import AUTO, Repulsion
from fastrepulse.schedule import HIGHEST_LEVEL

HIGHEST = 10_000.0
"""A noise level above the schedule of any model."""


class RepulsionNode:
    """Makes the images of one batch different from each other.

    The predicted clean latents, after guidance, are corrected by the repulsion of the whole batch:
    x0 + sigma strength * r_i (see `Repulsion`). There is only the push: guidance is the sampler's,
    and there is no restart. A model's `noise_scaling` gives alpha and sigma of
    x = alpha x0 + sigma noise for every parametrisation. The window's noise level is sigma / alpha,
    which exceeds 1 for flow models (SD 3, Flux) too.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model_patches/fastrepulse"
    DESCRIPTION = "Makes the images of one batch different from each other."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def number(default: float, least: float, most: float, step: float, tooltip: str) -> Any:
            limits = {"default": default, "min": least, "max": most, "step": step}
            return ("FLOAT", {**limits, "tooltip": tooltip})

        default = Repulsion()
        return {
            "required": {
                "model": ("MODEL",),
                "strength": number(
                    default.strength, -10, 10, 0.1, "Length of the push; 0 for no push."
                ),
                "embedding": (
                    list(embeddings.names()),
                    {
                        "default": default.embedding,
                        "tooltip": "The property in which the images will differ.",
                    },
                ),
                "window_from": number(
                    0, 0, HIGHEST, 0.1, "Highest noise level of the push; 0: by the image size."
                ),
                "window_to": number(0, 0, HIGHEST, 0.1, "Lowest noise level of the push."),
                # Not "seed", which ComfyUI randomises
                "embedding_seed": ("INT", {"default": 0, "min": 0, "max": 2**63 - 1}),
            }
        }

    def patch(
        self,
        model: Any,
        strength: float,
        embedding: str,
        window_from: float,
        window_to: float,
        embedding_seed: int,
    ) -> tuple[Any]:
        """Returns a copy of the model, a `ModelPatcher`, that repels; see `INPUT_TYPES`.

        Raises:
            ValueError: If a value is out of its range; when sampling, if the latents are not
                [B, C, H, W] (video).
        """
        window: Any = (window_from, window_to) if window_from or window_to else AUTO
        repulsion = Repulsion(embedding, strength, window=window, **PUSH_ALONE)

        def repel(args: dict[str, Any]) -> Tensor:
            denoised, noisy = args["denoised"], args["input"]
            alpha, sigma = signal_and_noise(args["model"].model_sampling, args["sigma"])
            level = sigma / alpha
            if noisy.ndim == 4 and not for_latents(repulsion, noisy).needs_step_at(level):
                return denoised
            # A sampler does not give the number of its step; the noise level serves as well
            step = round(1000 * level)
            return corrected_denoised(
                denoised,
                noisy / alpha,
                level,
                repulsion,
                next_sigma=next_level(args),
                step=step,
                seed=embedding_seed,
            )

        repelling = model.clone()
        repelling.set_model_sampler_post_cfg_function(repel)
        return (repelling,)


def next_level(args: dict[str, Any]) -> float | None:
    """Returns the noise level that ComfyUI's step ends at; None if it is unknown."""
    sigmas = args["model_options"].get("transformer_options", {}).get("sample_sigmas")
    if sigmas is None:
        return None
    lower = [sigma for sigma in sigmas if sigma < args["sigma"].flatten()[0]]
    if not lower or lower[0] == 0:
        return 0.0
    alpha, sigma = signal_and_noise(args["model"].model_sampling, lower[0])
    return sigma / alpha


def signal_and_noise(model_sampling: Any, sigma: Tensor) -> tuple[float, float]:
    """Returns alpha and sigma of x = alpha x0 + sigma noise as a model of ComfyUI adds noise."""
    time = sigma.flatten()[:1].float().cpu()
    one, zero = time.new_ones(1, 1, 1, 1), time.new_zeros(1, 1, 1, 1)
    signal = model_sampling.noise_scaling(time, zero.clone(), one).item()
    noise = model_sampling.noise_scaling(time, one.clone(), zero).item()
    return max(signal, 1 / HIGHEST_LEVEL), noise
