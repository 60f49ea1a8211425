"""The judge's features of held-out rendered pictures: what samples should look like.

The features of 1,600 of them ship as `rendered.safetensors`, so that distances to rendered pictures
can be had without rendering any. The file is made from the output of `render.py` by

    python -m fastrepulse.default_model.rendered --data data
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastrepulse.default_model.classifier import load_classifier
from fastrepulse.default_model.subjects import SUBJECTS

FEATURES = Path(__file__).parent / "rendered.safetensors"
PER_SUBJECT = 200


def rendered_features(data: Path | None = None) -> Tensor:
    """Returns the judge's features [subjects, M, 128] of held-out rendered pictures.

    Args:
        data: A folder with `heldout.npz` of `render.py`; None for the 200 of each subject that
            ship.

    Raises:
        FileNotFoundError: If the folder holds no such file.
    """
    if data is None:
        return load_file(FEATURES)["features"].float()
    file = data / "heldout.npz"
    if not file.is_file():
        raise FileNotFoundError(f"data must be a folder with heldout.npz, got {str(data)!r}")
    with np.load(file) as loaded:
        pictures = torch.from_numpy(loaded["pictures"]).permute(0, 3, 1, 2)
    classifier = load_classifier()
    with torch.no_grad():
        # In [-1, 1], as it was trained
        chunks = [classifier.embed(chunk / 127.5 - 1) for chunk in pictures.split(256)]
    return torch.cat(chunks).view(len(SUBJECTS), -1, chunks[0].shape[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    features = rendered_features(args.data)[:, :PER_SUBJECT]
    save_file({"features": features.half().contiguous()}, FEATURES)


if __name__ == "__main__":
    main()
