"""Measures the overhead of RepulsiveScheduler beyond the repulsion, on the shipped model.

python -m bench.sampling.wrapper_overhead
"""

import math
import time
from collections import defaultdict
from statistics import median

from bench.common import environment
from bench.sampling.peers import diffusers_pipeline
from fastrepulse import Repulsion, load_model
from fastrepulse.integrations import RepulsiveScheduler, scheduler
from fastrepulse.noise import initial_noise

N, STEPS, ROUNDS = 16, 10, 5


def main() -> None:
    pipeline = diffusers_pipeline(load_model())
    plain = pipeline.scheduler
    everywhere = Repulsion(window=(math.inf, 0.0))
    wrapped = RepulsiveScheduler(plain, everywhere)
    latents = initial_noise(0, N, (4, 16, 16))
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(name, function):
        def call(*given, **named):
            start = time.perf_counter()
            result = function(*given, **named)
            seconds[name].append(time.perf_counter() - start)
            return result

        return call

    kind = type(wrapped)
    kind._repel = timed("wrapper", kind._repel)
    scheduler.repulsive_force = timed("repulsion", scheduler.repulsive_force)
    draw = timed("pipeline", pipeline)
    for _ in range(ROUNDS):
        for pipeline.scheduler in (plain, wrapped):
            draw(
                "a potted plant",
                num_images_per_prompt=N,
                num_inference_steps=STEPS,
                guidance_scale=5.0,
                latents=latents,
                output_type="latent",
            )
    step = median(seconds["pipeline"][::2]) / STEPS
    extra = median(seconds["wrapper"]) - median(seconds["repulsion"])
    print(environment())
    print(f"step {1e3 * step:.1f} ms, repulsion {1e3 * median(seconds['repulsion']):.2f} ms")
    print(f"wrapper beyond the repulsion {1e3 * extra:.2f} ms, {extra / step:.2%} of a step")


if __name__ == "__main__":
    main()
