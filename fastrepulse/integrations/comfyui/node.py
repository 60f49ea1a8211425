"""The node: MODEL in, MODEL out; the images of a batch repel each other."""

from typing import Any

from fastrepulse import embeddings
from fastrepulse.methods.repulsion import AUTO, DEFAULT_EMBEDDING, Repulsion

from .hooks import Hooks, named

HIGHEST = 10_000.0
"""A noise level above the schedule of any model."""
SHIPPED_MODEL_ALONE = ("decoded_mean", "style_classifier", "style_thirds")
"""Embeddings that were fitted to latents of the model that fastrepulse ships."""


class RepulsionNode:
    """Makes the images of one batch different from each other, as `fastrepulse.sample` does.

    - The push is added to the predicted clean latents, after guidance.
    - In the pause the sampler's `cfg` is 1.
    - For the restart the sampler is called twice.

    Noise levels are those of x0 + sigma * noise for every model. A model's `noise_scaling` gives
    alpha and sigma of x = alpha x0 + sigma noise, and the noise level is sigma / alpha. It exceeds
    1 for flow models (SD 3, Flux) too.
    """

    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model, whose batches repel. Connect it to the sampler.",)
    FUNCTION = "patch"
    CATEGORY = "model_patches/fastrepulse"
    DESCRIPTION = (
        "Makes the images of one batch different from each other. Put it between the model (after "
        "any LoRA) and the sampler, and set batch_size to 2 or more. All noise levels follow from "
        "the size of the images and the sampler's steps."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def number(default: float, least: float, most: float, step: float, tooltip: str) -> Any:
            # The page would round what is typed to the step
            limits = {"default": default, "min": least, "max": most, "step": step, "round": 0.001}
            return ("FLOAT", {**limits, "tooltip": tooltip})

        offered = [name for name in embeddings.names() if name not in SHIPPED_MODEL_ALONE]
        strengths = ", ".join(
            f"{embeddings.build(name).strength:g} for {name}" for name in ("thirds", "random_cnn")
        )
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model, after any LoRA."}),
                "strength_factor": number(
                    1,
                    -10,
                    10,
                    0.05,
                    "Times the strength that suits the embedding "
                    f"({strengths}). 0: nothing happens; below 0: images become alike.",
                ),
                "embedding": (
                    offered,
                    {
                        "default": DEFAULT_EMBEDDING,
                        "tooltip": "What becomes different: thirds composition, channel_mean "
                        "colour, random_cnn structure, gram texture.",
                    },
                ),
                "window_from": number(
                    0,
                    0,
                    HIGHEST,
                    0.1,
                    "Highest noise level of the push. 0 here and in window_to: by the rule.",
                ),
                "window_to": number(0, 0, HIGHEST, 0.1, "Lowest noise level of the push."),
                # Not "seed", which ComfyUI randomises
                "embedding_seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 2**63 - 1,
                        "tooltip": "Seed of embeddings that draw something at random (random_cnn).",
                    },
                ),
            },
            "optional": {
                "pause_guidance": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "cfg is 1 for some steps, since guidance undoes the push. These "
                        "steps take half the time.",
                    },
                ),
                "restart": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "After the push some steps are taken again with new noise, "
                        "which removes artefacts.",
                    },
                ),
                "bank": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 2**31,
                        "tooltip": "0: a batch repels on its own. Above 0: also from all images of "
                        "the same prompt, size and steps that were drawn before, so single images "
                        "work. Another number, or a change of another input, forgets them.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def patch(
        self,
        model: Any,
        strength_factor: float,
        embedding: str,
        window_from: float,
        window_to: float,
        embedding_seed: int,
        pause_guidance: bool = True,
        restart: bool = True,
        bank: int = 0,
        unique_id: str | None = None,
    ) -> tuple[Any]:
        """Returns a copy of the model, a `ModelPatcher`, that repels; see `INPUT_TYPES`.

        Raises:
            ValueError: If a value is out of its range, or the model repels already; when sampling,
                if the latents are not those of images.
        """
        with named():
            repulsion = Repulsion(
                embedding,
                strength_factor * embeddings.build(embedding).strength,
                window=(window_from, window_to) if window_from or window_to else AUTO,
                pause=AUTO if pause_guidance else None,
                restart=AUTO if restart else None,
            )
            repelling = model.clone()
            if repulsion.strength:
                Hooks(repulsion, embedding_seed, unique_id, keeps=bank > 0).add_to(repelling)
        return (repelling,)
