"""Small spaces in which latents are compared, one family a file."""

from fastrepulse.embeddings import patterns, random_cnn
from fastrepulse.embeddings.base import Embed, Embedding, build, names, register

__all__ = ["Embed", "Embedding", "build", "names", "patterns", "random_cnn", "register"]
