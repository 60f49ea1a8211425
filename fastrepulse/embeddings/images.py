"""Embeddings of decoded images; gradients flow back through the encoder and the decoder."""

from torch import Tensor

from fastrepulse.embeddings.base import Embed, Embedding, FunctionEmbedding, function_name


def image(encoder: Embed, decode: Embed) -> Embedding:
    """Returns an embedding that applies an image encoder (CLIP, DINO, ...) to decoded latents.

    The encoder sets d and what becomes different. At each step the decoder and the encoder run
    forward for every particle, and once more forward and backward to pull the force back. This
    takes three times as long as the shipped model's guided step. Use it with `on="denoised"`,
    because noisy latents decode to noise.

    Args:
        encoder: A differentiable module or function from images [N, 3, H, W] in [0, 1] to features
            [N, d], such as `average_colour` or `efficientnet_lite0(...)`.
        decode: From latents [N, C, H, W] to images: `load_model(...).decode`. A compiled decoder
            returned a wrong gradient (torch 2.13, CPU).

    Raises:
        TypeError: If an argument is not callable.
    """
    for name, function in (("encoder", encoder), ("decode", decode)):
        if not callable(function):
            raise TypeError(f"{name} must be a function or a module, got {function!r}")

    def embed(latents: Tensor) -> Tensor:
        return encoder(decode(latents).float())

    return FunctionEmbedding(embed, f"image({function_name(encoder)})")


def average_colour(images: Tensor) -> Tensor:
    """An encoder for `image`: returns the average colour [N, 3] of images [N, 3, H, W]."""
    return images.mean(dim=(2, 3))
