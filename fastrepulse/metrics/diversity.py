"""How many different pictures a set effectively holds."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def vendi_score(
    features: Tensor,  # [N, d]
) -> float:
    """Returns the effective number of different rows: exp of the entropy of the eigenvalues of K/N.

    K is the cosine similarity of the rows (Friedman & Dieng 2023, arXiv:2210.02410), so N copies
    score 1 and N orthogonal rows score N. Its non-zero eigenvalues are those of the d x d dual,
    which is used where it is smaller.

    Args:
        features: One row a picture, [N, d]; a row of zeros has no direction.

    Returns:
        The score, in [1, N].

    Raises:
        ValueError: If `features` is not [N, d], or a row is zero or not finite.
    """
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"features must be [N, d] with N >= 1, got {tuple(features.shape)}")
    rows = features.double()
    norms = rows.norm(dim=1)
    bad = ~(torch.isfinite(norms) & (norms > 0))
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(f"features must have finite rows other than zero, row {row} is not")
    rows = normalize(rows, dim=1)
    gram = rows.T @ rows if rows.shape[1] < len(rows) else rows @ rows.T
    eigenvalues = torch.linalg.eigvalsh(gram / len(rows)).clamp_min(0)
    return torch.exp(torch.special.entr(eigenvalues).sum()).item()
