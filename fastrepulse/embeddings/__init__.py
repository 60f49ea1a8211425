"""Embeddings: maps from latents to the vectors that the repulsion compares, one family a file."""

from fastrepulse.embeddings import patterns, random_cnn, style
from fastrepulse.embeddings.base import Embed, Embedding, build, name_of, names, register
from fastrepulse.embeddings.colour import DecodedMean, fit_rgb
from fastrepulse.embeddings.combine import KernelSum, product
from fastrepulse.embeddings.efficientnet import efficientnet_lite0
from fastrepulse.embeddings.gram import Gram
from fastrepulse.embeddings.images import average_colour, image
from fastrepulse.metrics.spaces import resized

__all__ = [
    "DecodedMean",
    "Embed",
    "Embedding",
    "Gram",
    "KernelSum",
    "average_colour",
    "build",
    "efficientnet_lite0",
    "fit_rgb",
    "image",
    "name_of",
    "names",
    "patterns",
    "product",
    "random_cnn",
    "register",
    "resized",
    "style",
]
