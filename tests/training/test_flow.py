"""The rectified-flow transformer is trained on what its pipeline computes."""

import torch
from torch.nn.functional import pad

from helpers.checkout import import_from_checkout

flow = import_from_checkout("training.flow")


def test_one_counted_token_of_padding_equals_all_of_them():
    torch.manual_seed(0)
    transformer = flow.build_transformer()
    for parameter in transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    context, pooled = torch.randn(2, 5, 192), torch.randn(2, 192)
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([300.0, 700.0])

    def predicted(padding):
        return transformer(
            hidden_states=latents,
            timestep=times,
            encoder_hidden_states=pad(context, (0, 0, 0, padding)),
            pooled_projections=pooled,
        ).sample

    with torch.no_grad():
        expected = predicted(flow.PADDING)
        transformer.set_attn_processor(flow.PaddedOnce())
        torch.testing.assert_close(predicted(1), expected, atol=2e-5, rtol=0)
    assert expected.abs().mean() > 0.1


def test_the_untrained_transformer_predicts_no_velocity():
    x0 = torch.randn(64, 4, 8, 8)
    transformer = flow.build_transformer()
    transformer.set_attn_processor(flow.PaddedOnce())
    loss = flow.loss_of(transformer, torch.randn(64, 5, 192), torch.randn(64, 192), x0)
    # The velocity is noise - x0, whose variance is 2
    assert abs(loss.item() - 2) < 0.1
