"""The node: MODEL in, MODEL out, whose batch repels itself at every step."""

from typing import Any

from torch import Tensor

from fastrepulse import embeddings
from fastrepulse.integrations import corrected_denoised
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.schedule import HIGHEST_LEVEL

HIGHEST = 10_000.0
"""A noise level above those of all models."""


class RepulsionNode:
    """Makes the pictures of one batch different from each other.

    The predicted clean latents, after guidance, are corrected by the repulsion of the whole batch:
    x0 + sigma (strength * r_i + spread * d_i) (see `Repulsion`). Models of every parametrisation
    say how they add noise, x = alpha x0 + sigma noise, by their `noise_scaling`; the noise level of
    the window is sigma / alpha, so that of flow models (SD 3, Flux) goes beyond 1 too.
    """

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model_patches/fastrepulse"
    DESCRIPTION = "Makes the pictures of one batch different from each other."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Returns what the node shows and takes."""

        def number(default: float, least: float, most: float, step: float, tooltip: str) -> Any:
            limits = {"default": default, "min": least, "max": most, "step": step}
            return ("FLOAT", {**limits, "tooltip": tooltip})

        default = Repulsion()
        return {
            "required": {
                "model": ("MODEL",),
                "strength": number(
                    default.strength, -10, 10, 0.1, "How strongly pictures repel; 0 for nothing."
                ),
                "embedding": (
                    list(embeddings.names()),
                    {
                        "default": default.embedding,
                        "tooltip": "In what the pictures shall be different.",
                    },
                ),
                "window_from": number(
                    default.window[0], 0, HIGHEST, 0.1, "The noise level from which on they repel."
                ),
                "window_to": number(
                    default.window[1], 0, HIGHEST, 0.1, "The noise level down to which they do."
                ),
                "spread": number(
                    default.spread, 0, 10, 0.01, "How strongly noise parts them, at all levels."
                ),
                # Not "seed": ComfyUI draws a number of that name anew each time
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
        spread: float,
        embedding_seed: int,
    ) -> tuple[Any]:
        """Returns a copy of the model that repels.

        Args:
            model: A `ModelPatcher` of ComfyUI.
            strength: Length of the push over that of the predicted noise; 0 for nothing.
            embedding: The name of an embedding.
            window_from: The noise level from which on particles repel.
            window_to: The noise level, below `window_from`, down to which they do.
            spread: Length of the push in the noisy latents, at all noise levels.
            embedding_seed: From which an embedding draws what is random in it.

        Raises:
            ValueError: If a value is out of its range; when sampling, if the latents are not
                [B, C, H, W] (video).
        """
        repulsion = Repulsion(
            embedding, strength, "denoised", (window_from, window_to), spread=spread
        )

        def repel(args: dict[str, Any]) -> Tensor:
            denoised, noisy = args["denoised"], args["input"]
            alpha, sigma = signal_and_noise(args["model"].model_sampling, args["sigma"])
            level = sigma / alpha
            if not repulsion.watches(level):
                return denoised
            # A sampler does not say which step it takes; the noise level does as well
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
    """Returns the noise level that ComfyUI's step ends at, None where it does not say."""
    sigmas = args["model_options"].get("transformer_options", {}).get("sample_sigmas")
    if sigmas is None:
        return None
    sampling = args["model"].model_sampling
    lower = [sigma for sigma in sigmas if sigma < args["sigma"].flatten()[0]]
    if not lower or lower[0] == 0:
        return 0.0
    alpha, sigma = signal_and_noise(sampling, lower[0])
    return sigma / alpha


def signal_and_noise(model_sampling: Any, sigma: Tensor) -> tuple[float, float]:
    """Returns alpha and sigma of x = alpha x0 + sigma noise as a model of ComfyUI adds noise."""
    time = sigma.flatten()[:1].float().cpu()
    one, zero = time.new_ones(1, 1, 1, 1), time.new_zeros(1, 1, 1, 1)
    signal = model_sampling.noise_scaling(time, zero.clone(), one).item()
    noise = model_sampling.noise_scaling(time, one.clone(), zero).item()
    return max(signal, 1 / HIGHEST_LEVEL), noise
