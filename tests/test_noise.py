import pytest
import torch

from fastrepulse.noise import NUMBERS_PER_THREAD, STREAMS, particle_noise
from helpers.cpu_variants import threads


@pytest.mark.parametrize("count", [1, 3], ids=["one-thread", "three-threads"])
def test_the_noise_of_a_particle_depends_on_neither_the_batch_nor_the_threads(count):
    shape = (4, NUMBERS_PER_THREAD // 4)
    with threads(count):
        together = particle_noise(7, range(5), shape, "text", step=2)
    alone = [particle_noise(7, [i], shape, "text", step=2)[0] for i in range(5)]
    assert torch.equal(together, torch.stack(alone))
    assert len({row[0, 0].item() for row in together}) == 5


def test_seeds_particles_streams_and_steps_do_not_share_noise():
    drawn = [
        particle_noise(seed, [particle], (64,), stream, step)[0]
        for seed in (0, 1)
        for particle in (0, 1)
        for stream in STREAMS
        for step in (0, 1)
    ]
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))
    assert correlation.abs().max() < 0.6


def test_noise_has_unit_variance_and_the_requested_shape():
    drawn = particle_noise(0, range(100), (3, 5, 7))
    assert drawn.shape == (100, 3, 5, 7) and drawn.dtype == torch.float32
    assert abs(drawn.mean()) < 0.05 and abs(drawn.std() - 1) < 0.05
    assert particle_noise(0, [4], ()).shape == (1,)
