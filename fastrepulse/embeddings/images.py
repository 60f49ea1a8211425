"""Embeddings of pictures: the latents are decoded first, and gradients flow back through both."""

from torch import Tensor

from fastrepulse.embeddings.base import Embed, Embedding, function_name


class Image(Embedding):
    """An image encoder on decoded latents, d and what it makes different being the encoder's.

    Dear: the decoder and the encoder run forward for every particle at each step, and forward and
    backward once more to pull the force back, three times the shipped model's guided step. Meant
    for `on="denoised"`: noisy latents decode to noise.
    """

    def __init__(self, encoder: Embed, decode: Embed):
        self.encoder = encoder
        self.decode = decode
        self.name = f"image({function_name(encoder)})"

    def __call__(self, latents: Tensor) -> Tensor:
        return self.encoder(self.decode(latents).float())


def image(encoder: Embed, decode: Embed) -> Embedding:
    """Returns the embedding of an image encoder (CLIP, DINO, ...) on decoded latents.

    Args:
        encoder: A module or function from pictures [N, 3, H, W] in [0, 1] to features [N, d]:
            `average_colour`, `efficientnet_lite0(...)`, or any other that is differentiable.
        decode: From latents [N, C, H, W] to such pictures: the `decode` of what `load_model`
            returned. Not one that was compiled: its gradient came out wrong (torch 2.13, CPU).

    Raises:
        TypeError: If one of them cannot be called.
    """
    for name, function in (("encoder", encoder), ("decode", decode)):
        if not callable(function):
            raise TypeError(f"{name} must be a function or a module, got {function!r}")
    return Image(encoder, decode)


def average_colour(pictures: Tensor) -> Tensor:
    """Returns the average colour [N, 3] of pictures [N, 3, H, W], an encoder for `image`."""
    return pictures.mean(dim=(2, 3))
