"""Trains the judge of the default model's pictures, on rendered pictures alone.

python -m fastrepulse.default_model.train_classifier --data data --out model
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from tqdm import tqdm

from fastrepulse.default_model.classifier import HEADS, Classifier
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.default_model.train_autoencoder import load_pictures, to_float

UNNAMED = -100


def load_labels(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """Returns the subjects [M], and for each head its value or UNNAMED, [M, heads]."""
    with np.load(data / f"{split}.npz") as arrays:
        subjects = torch.from_numpy(arrays["subjects"])
    drawn = json.loads((data / f"{split}.json").read_text())
    labels = torch.full((len(drawn), len(HEADS)), UNNAMED)
    for i, options in enumerate(drawn):
        shown = SUBJECTS[subjects[i]].attributes_of(options)
        for h, (owner, attribute) in enumerate(HEADS):
            if owner is SUBJECTS[subjects[i]] and attribute.name in shown:
                labels[i, h] = attribute.values.index(shown[attribute.name])
    return subjects, labels


def augment(pictures: Tensor) -> Tensor:
    """Shifts pictures by up to two pixels and adds faint noise, so that samples are judged fairly.

    A decoder leaves traces that no rendered picture has; the judge must not mind them.
    """
    dy, dx = torch.randint(0, 5, (2,)).tolist()
    shifted = pad(pictures, (2, 2, 2, 2), mode="replicate")[:, :, dy : dy + 64, dx : dx + 64]
    return shifted + torch.rand(()) * 0.1 * torch.randn_like(pictures)


def loss_of(classifier: Classifier, pictures: Tensor, subjects: Tensor, labels: Tensor) -> Tensor:
    subject_logits, heads = classifier(pictures)
    loss = cross_entropy(subject_logits, subjects)
    for logits, target in zip(heads, labels.T, strict=True):
        named = cross_entropy(logits, target, ignore_index=UNNAMED, reduction="sum")
        loss = loss + named / len(pictures)
    return loss


@torch.no_grad()
def evaluate(
    classifier: Classifier, pictures: Tensor, subjects: Tensor, labels: Tensor
) -> dict[str, float]:
    """Returns the accuracy of each head on held-out pictures."""
    classifier.eval()
    outputs = [classifier(to_float(chunk)) for chunk in pictures.split(256)]
    right = torch.cat([subject.argmax(1) for subject, _ in outputs]) == subjects
    accuracy = {"subject": right.float().mean().item()}
    for h, (owner, attribute) in enumerate(HEADS):
        guess = torch.cat([heads[h].argmax(1) for _, heads in outputs])
        named = labels[:, h] != UNNAMED
        right = guess[named] == labels[named, h]
        accuracy[f"{owner.name}/{attribute.name}"] = right.float().mean().item()
    classifier.train()
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()

    torch.manual_seed(0)
    pictures = load_pictures(args.data / "train.npz")
    subjects, labels = load_labels(args.data, "train")
    classifier = Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), 3e-3, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, args.steps)
    for _ in tqdm(range(args.steps), mininterval=10):
        index = torch.randint(len(pictures), (args.batch_size,))
        batch = augment(to_float(pictures[index]))
        loss_of(classifier, batch, subjects[index], labels[index]).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    heldout = load_pictures(args.data / "heldout.npz")
    accuracy = evaluate(classifier, heldout, *load_labels(args.data, "heldout"))
    print(json.dumps(accuracy, indent=2))
    weights = {
        key: value.half() if value.is_floating_point() else value
        for key, value in classifier.state_dict().items()
    }
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(weights, args.out / "classifier.safetensors")


if __name__ == "__main__":
    main()
