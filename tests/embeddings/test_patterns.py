import pytest
import torch

from fastrepulse.embeddings import Embedding, build
from fastrepulse.noise import initial_noise
from helpers.tolerances import SAME_COMPUTATION


@pytest.mark.parametrize("sides", [(16, 16), (17, 9)], ids=["16x16", "17x9"])
@pytest.mark.parametrize("name", ["channel_mean", "pooled", "halves", "thirds"])
def test_patterns_pull_back_without_a_graph_what_autograd_does_with_one(name, sides):
    embed, latents = build(name), initial_noise(0, 5, (4, *sides))
    rows, pull_back = embed.vjp(latents)
    expected_rows, expected_pull_back = Embedding.vjp(embed, latents)
    force = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    assert rows.grad_fn is None and torch.equal(rows, expected_rows)
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(pull_back(force), expected_pull_back(force), rtol=rtol, atol=atol)
