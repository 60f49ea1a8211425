import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from fastrepulse import models
from fastrepulse.layers.attention import attention_of
from helpers.tolerances import SAME_COMPUTATION


@pytest.fixture(scope="module")
def unet():
    return models.load_model().unet


@torch.no_grad()
@pytest.mark.parametrize(
    ("attention", "kind"), [("sdpa", AttnProcessor2_0), ("math", AttnProcessor)]
)
def test_attention_is_exchanged_within_the_context(unet, attention, kind):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    inputs = latents, torch.tensor(500), torch.randn(2, 77, 128, generator=generator)
    before, expected = dict(unet.attn_processors), unet(*inputs).sample
    with attention_of(unet, attention):
        assert all(type(processor) is kind for processor in unet.attn_processors.values())
        got = unet(*inputs).sample
    assert unet.attn_processors == before
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)


def test_auto_keeps_the_attention_of_diffusers(unet):
    with attention_of(unet, "math"):
        before = dict(unet.attn_processors)
        with attention_of(unet, "auto"):
            assert unet.attn_processors == before
