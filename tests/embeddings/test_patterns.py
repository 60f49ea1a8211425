import pytest
import torch

from fastrepulse import Repulsion
from fastrepulse.embeddings import Embedding, build, names
from fastrepulse.embeddings.patterns import make_patterns
from fastrepulse.noise import initial_noise
from helpers.drawn import particles_of
from helpers.tolerances import SAME_COMPUTATION


@pytest.mark.parametrize("sides", [(16, 16), (17, 9)], ids=["16x16", "17x9"])
@pytest.mark.parametrize("name", ["channel_mean", "pooled", "halves", "thirds"])
def test_the_analytic_pull_back_equals_autograd(name, sides):
    embed, latents = build(name), initial_noise(0, 5, (4, *sides))
    rows, pull_back = embed.vjp(latents)
    expected_rows, expected_pull_back = Embedding.vjp(embed, latents)
    force = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    assert rows.grad_fn is None and torch.equal(rows, expected_rows)
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(pull_back(force), expected_pull_back(force), rtol=rtol, atol=atol)


def test_patterns_are_made_once_for_all_steps(monkeypatch):
    def count(rows):
        made.append(rows.shape)
        return real(rows)

    made, real = [], torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", count)
    make_patterns.cache_clear()
    for sigma in (8.0, 6.0, 5.0):
        Repulsion("thirds").push(particles_of(initial_noise(0, 3, (4, 16, 16)), sigma=sigma))
    assert made.count((12, 256)) == 1


def test_patterns_that_were_made_in_inference_mode_have_a_gradient():
    make_patterns.cache_clear()
    latents = initial_noise(0, 2, (4, 8, 8))
    with torch.inference_mode():
        build("halves")(latents)
    build("halves")(latents.requires_grad_()).sum().backward()
    assert latents.grad.abs().max() > 0


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("sides", [(1, 1), (1, 4), (2, 2)], ids=["1x1", "1x4", "2x2"])
def test_at_the_smallest_sizes_an_embedding_pushes_or_is_refused_by_name(name, sides):
    latents = initial_noise(0, 3, (4, *sides))
    method = Repulsion(name, window=(10.0, 0.0))
    try:
        changes = torch.cat(list(method.push(particles_of(latents, sigma=2.0)).changes))
    except ValueError as error:
        assert name.removeprefix("style_") in str(error)
    else:
        assert changes.abs().amax(dim=(1, 2, 3)).min() > 0
