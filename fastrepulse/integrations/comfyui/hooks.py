"""The functions that a MODEL calls while ComfyUI samples from it."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from fastrepulse.integrations.functional import force_on
from fastrepulse.methods.bank import Bank
from fastrepulse.methods.repulsion import Repulsion
from fastrepulse.noise import particle_noise

from .run import Run, level_of, signal_and_noise

log = logging.getLogger("fastrepulse")

NAME = "Repulsion (fastrepulse)"
KEY = "fastrepulse"
"""Name of the wrappers, and of the run in ComfyUI's transformer options."""
SAMPLE, PREDICT = "sampler_sample", "predict_noise"
"""ComfyUI's names of its wrappers for a whole run and for one prediction with guidance."""


@contextmanager
def named() -> Iterator[None]:
    """Puts the name of the node before messages of errors, which ComfyUI shows at the sampler."""
    try:
        yield
    except (ValueError, TypeError, FloatingPointError) as error:
        raise type(error)(f"{NAME}: {error}") from error


class Hooks:
    """Push, pause and restart in the runs of one MODEL.

    Args:
        repulsion: The repulsion.
        seed: Seed of random embeddings.
        node: ComfyUI's id of the node, under which the page shows messages; None for no page.
        keeps: Whether runs repel from earlier ones of the same schedule, size and prompt.
    """

    def __init__(self, repulsion: Repulsion, seed: int, node: str | None, keeps: bool = False):
        self.repulsion = repulsion
        self.seed = seed
        self.node = node
        self.keeps = keeps
        self._banks: dict[tuple[Any, ...], Bank] = {}

    def add_to(self, model: Any) -> None:
        """Adds the functions to a `ModelPatcher`.

        Raises:
            ValueError: If the model repels already.
        """
        if model.get_wrappers(SAMPLE, KEY):
            raise ValueError("model must be one that does not repel already, got one that does")
        model.add_wrapper_with_key(SAMPLE, KEY, self.sample)
        model.add_wrapper_with_key(PREDICT, KEY, self.predict)
        model.set_model_sampler_post_cfg_function(self.push)

    def sample(
        self,
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable[..., None] | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Samples once, or in two parts with the restart between them.

        Raises:
            ValueError: If the latents are not of images.
        """

        def part(
            sigmas: Tensor, noise: Tensor, changed: dict[str, Any], done: int, total: int
        ) -> Tensor:
            def after_step(step: int, x0: Any, x: Any, _: int) -> None:
                assert callback is not None
                callback(step + done, x0, x, total)

            # Copies: a sampler may overwrite the last level, and change its arguments
            return executor(
                guider,
                sigmas.clone(),
                {**extra_args, **changed},
                None if callback is None else after_step,
                noise,
                latent_image,
                denoise_mask,
                disable_pbar,
            )

        steps, options = len(sigmas) - 1, extra_args["model_options"]
        if steps < 1:
            return part(sigmas, noise, {}, 0, 0)
        with named():
            height, width = as_images(noise).shape[2:]
            if len(noise) < 2 and not self.keeps:
                self.tell(
                    "a batch of one has nothing to repel from; set batch_size to 2 or more, or "
                    "bank to 1 for images that are queued one by one"
                )
                return part(sigmas, noise, {}, 0, steps)
            size = (height, width)
            sampler, repulsion = executor.class_obj, self.repulsion
            if self.keeps:
                key = (*sigmas.tolist(), *noise.shape[1:], *marks_of_prompt(guider))
                repulsion = replace(repulsion, bank=self._banks.setdefault(key, Bank()))
            run = Run.of(repulsion, guider, sampler, sigmas, options, latent_image, size)
        self.tell(run.summary(), warns=not run.pushed)
        transformer = {**options.get("transformer_options", {}), KEY: run}
        changed = {"model_options": {**options, "transformer_options": transformer}}
        if run.jump is None:
            return part(sigmas, noise, changed, 0, steps)
        low, high = run.jump
        total, seed = steps + low - high, extra_args.get("seed") or 0
        z = part(sigmas[: low + 1], noise, changed, 0, total)
        fresh = particle_noise(seed % 2**63, range(len(z)), z.shape[1:], "restart")
        z = run.schedule.renoised(z, fresh, low, high)
        # ComfyUI adds noise to the image that a run starts from, and keeps both outside a mask
        clean = z.new_zeros(()) if latent_image is None else latent_image.to(z)
        noise = (z - clean) / run.schedule.sigmas[high]
        # With the same seed samplers that add noise would repeat it
        return part(sigmas[high:], noise, {**changed, "seed": seed + 1}, low, total)

    def predict(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Predicts with a `cfg` of 1 in the pause; then ComfyUI does not compute the negative."""
        options, guider = model_options or {}, executor.class_obj
        run = run_of(options)
        if run is None or not self._pauses(run, guider.inner_model.model_sampling, timestep):
            return executor(x, timestep, options, seed)
        given, guider.cfg = guider.cfg, 1.0
        try:
            return executor(x, timestep, options, seed)
        finally:
            guider.cfg = given

    def push(self, args: dict[str, Any]) -> Tensor:
        """Returns the predicted clean latents, after guidance, with the push."""
        run, x0 = run_of(args["model_options"]), args["denoised"]
        if run is None:
            return x0
        with named():
            pushed = self._pushed(run, args)
        if len(args["model_options"].get("sampler_post_cfg_function", ())) > run.functions:
            self._push_negative(run, args, pushed)
        return pushed

    def tell(self, message: str, warns: bool = True) -> None:
        """Shows a message at the node on the page, and a warning on the console too."""
        if warns:
            log.warning("%s pushes nothing: %s", NAME, message)
        page: Any = getattr(
            getattr(sys.modules.get("server"), "PromptServer", None), "instance", None
        )
        if self.node is not None and hasattr(page, "send_progress_text"):
            page.send_progress_text(message, self.node)

    def _pauses(self, run: Run, sampling: Any, timestep: Tensor) -> bool:
        sigma = float(timestep.flatten()[0])
        return run.pauses_at(run.step_at(sigma), level_of(sampling, sigma))

    def _pushed(self, run: Run, args: dict[str, Any]) -> Tensor:
        x0, x, sigma = args["denoised"], args["input"], float(args["sigma"].flatten()[0])
        signal, noise = signal_and_noise(args["model"].model_sampling, sigma)
        level, step, repulsion = noise / signal, run.step_at(sigma), run.repulsion
        if not repulsion.needs_step_at(level) or (len(x0) < 2 and not repulsion.acts_on_one):
            return x0
        force = force_on(
            as_images(x0),
            as_images(x) / signal,
            level,
            repulsion,
            next_sigma=run.next_level(step),
            group_size=None,
            step=step if repulsion.bank is None else run.place_in_bank(step, sigma),
            seed=self.seed,
            first=run.is_first(step),
        )
        return (x0 + level**2 * force.view_as(x0)).to(x0.dtype)

    def _push_negative(self, run: Run, args: dict[str, Any], pushed: Tensor) -> None:
        """Changes the negative prediction in place, as CFG++ samplers continue from it.

        x' = x0 + sigma' (x - negative) / sigma: a change of x0 alone would enter in full, and not
        by 1 - sigma' / sigma as in other samplers.
        """
        negative, sampling = args["uncond_denoised"], args["model"].model_sampling
        if self._pauses(run, sampling, args["sigma"]):
            negative.copy_(pushed)
        else:
            negative.add_(pushed - args["denoised"])


def run_of(options: dict[str, Any]) -> Run | None:
    """Returns the run that model options belong to."""
    return options.get("transformer_options", {}).get(KEY)


def marks_of_prompt(guider: Any) -> list[str]:
    """Returns numbers that differ from prompt to prompt."""
    conditions = getattr(guider, "original_conds", {}).get("positive", ())
    texts = [each.get("cross_attn") for each in conditions]
    # The squares overflow in half precision
    texts = [text.float() for text in texts if text is not None]
    return [f"{moment:.5g}" for text in texts for moment in (text.sum(), text.square().sum())]


def as_images(latents: Tensor) -> Tensor:
    """Returns latents [B, C, H, W] of latents [B, C, H, W] or [B, C, 1, H, W].

    Raises:
        ValueError: If the latents have another shape.
    """
    if latents.ndim == 5 and latents.shape[2] == 1:
        return latents.squeeze(2)
    if latents.ndim == 4:
        return latents
    kind = {5: "of a video", 3: "of sound, or of several media together"}.get(latents.ndim, "")
    raise ValueError(
        "latents must be those of images, [B, C, H, W] or [B, C, 1, H, W], got "
        f"{list(latents.shape)} {kind}".rstrip()
    )
