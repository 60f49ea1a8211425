"""Small spaces in which latents are compared, one family a file."""

from fastrepulse.embeddings import pooling, random_cnn, regions
from fastrepulse.embeddings.base import Embed, Embedding, build, names, register

__all__ = ["Embed", "Embedding", "build", "names", "pooling", "random_cnn", "regions", "register"]
