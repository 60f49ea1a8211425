"""Trains the judge on rendered pictures.

    python -m training.judge --data data --out model

The pictures have artefacts of every kind and amount, so that the judge learns to ignore them.
"""

import json

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from fastrepulse.default_model.judge import HEADS, Classifier
from training.dirt import confetti, mottle, noise
from training.pictures import (
    UNNAMED,
    load_labels,
    load_pictures,
    to_float,
)
from training.trainer import (
    parse_options,
    save_half,
    train_classifier,
)


def augment(pictures: Tensor) -> Tensor:
    """Shifts pictures by up to two pixels, blurs some, and adds artefacts to half of them.

    Decoders and strong pushes leave artefacts in samples, and the judge must ignore them.
    """
    dy, dx = torch.randint(0, 5, (2,)).tolist()
    shifted = pad(pictures, (2, 2, 2, 2), mode="replicate")[:, :, dy : dy + 64, dx : dx + 64]
    if torch.rand(()) < 0.25:
        shifted = torch.nn.functional.avg_pool2d(pad(shifted, (1, 1, 1, 1), "replicate"), 3, 1)

    def amounts(most: float) -> Tensor:
        own = torch.rand(len(pictures), device=pictures.device)
        return most * own * (torch.rand_like(own) < 0.5)

    cell = int(torch.randint(2, 12, ()))
    dirty = mottle(shifted, amounts(0.5), cell)
    dirty = confetti(dirty, amounts(0.15), int(torch.randint(1, 4, ())))
    return noise(dirty, amounts(0.25))


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
    """Returns the accuracy of each head on pictures [M, 3, 64, 64] in [-1, 1]."""
    classifier.eval()
    outputs = [classifier(chunk) for chunk in pictures.split(256)]
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
    args = parse_options(__doc__, steps=9000, batch_size=64)
    torch.manual_seed(0)
    device = torch.device(args.device)
    splits = ("even", "long_tailed")
    pictures = torch.cat([load_pictures(args.data / f"{s}.npz") for s in splits]).to(device)
    parts = [load_labels(args.data, split) for split in splits]
    subjects, labels = (torch.cat(part).to(device) for part in zip(*parts, strict=True))
    classifier = Classifier().to(device)

    def draw_loss() -> Tensor:
        index = torch.randint(len(pictures), (args.batch_size,), device=device)
        batch = augment(to_float(pictures[index]))
        return loss_of(classifier, batch, subjects[index], labels[index])

    train_classifier(classifier, args.steps, 3e-3, draw_loss)
    heldout = to_float(load_pictures(args.data / "heldout.npz").to(device))
    truth = [part.to(device) for part in load_labels(args.data, "heldout")]
    accuracy = {"clean": evaluate(classifier, heldout, *truth)}
    accuracy["mottle 0.2"] = evaluate(classifier, mottle(heldout, 0.2), *truth)
    accuracy["confetti 0.05"] = evaluate(classifier, confetti(heldout, 0.05), *truth)
    print(json.dumps(accuracy, indent=2))
    save_half(classifier, args.out / "classifier.safetensors")


if __name__ == "__main__":
    main()
