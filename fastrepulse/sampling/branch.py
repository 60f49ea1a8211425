"""Variations of one picture: particles that are one at first, and part at a noise level."""

from typing import Any

from torch import Tensor

from fastrepulse.sampling.loop import DenoiseLoop


def branch(loop: DenoiseLoop, sigma: float, first: Tensor, noise: Tensor) -> DenoiseLoop:
    """Takes the first particle of each prompt down to a noise level and gives its picture to all.

    Args:
        loop: The loop of all particles, at its first step.
        sigma: The noise level.
        first: Noise of unit variance for the first particle of each prompt, [prompts, C, H, W].
        noise: For all particles of the loop, [prompts * N, C, H, W].

    Returns:
        The loop that goes on from there: the same picture for all, each with its own noise.

    Raises:
        ValueError: If the noise level is below the last one.
    """
    schedule, scheduler = loop.schedule, loop.scheduler
    steps = range(len(scheduler.timesteps))
    start = next((step for step in steps if schedule.sigmas[step] <= sigma), None)
    if start is None:
        lowest = schedule.sigmas[steps[-1]]
        raise ValueError(f"shared_until must be at least {lowest:.3g} here, got {sigma}")
    settings: dict[str, Any] = {
        "seed": loop.seed,
        "guidance_window": loop.guidance_window,
        "micro_batch_size": loop.micro_batch_size,
        "corrections": loop.corrections,
    }
    # Not compiled: a graph would pad the few to a whole micro-batch
    single = DenoiseLoop(
        first.to(loop.x) * scheduler.init_noise_sigma,
        loop.denoise.uncompiled(),
        scheduler,
        None,
        num_particles=1,
        **settings,
    )
    single.run(stop=start)
    predicted = single.predict(start)
    predicted.watch.read()
    denoised = predicted.denoised[loop.prompts.to(first.device)]
    noisy = denoised + schedule.sigmas[start] * noise.to(loop.x)
    return DenoiseLoop(
        schedule.scheduler_sample(noisy, start),
        loop.denoise,
        scheduler,
        loop.method,
        num_particles=loop.num_particles,
        start=start,
        share=loop.share,
        **settings,
    )
