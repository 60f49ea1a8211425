"""On a Mac's GPU every embedding and every method uses only what MPS knows."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch

from fastrepulse import Bank, Repulsion, embeddings, methods, metrics
from helpers.drawn import particles_of
from helpers.macs import pretended_mac

ALWAYS = (math.inf, 0.0)
METHODS = {
    **{name: Repulsion(name, window=ALWAYS) for name in embeddings.names()},
    "noisy": Repulsion("halves", window=ALWAYS, on="noisy"),
    "subset": Repulsion("halves", window=ALWAYS, subset=3),
    "bandwidth": Repulsion("halves", window=ALWAYS, bandwidth=2.0),
    "bank": Repulsion("halves", window=ALWAYS, bank=Bank(torch.randn(2, 4, 16, 16))),
    **{name: getattr(methods, name)() for name in methods.__all__},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_push_uses_only_what_mps_knows(name, monkeypatch):
    # A copy, since the networks of an embedding lose their values on the pretended device
    method = copy.deepcopy(METHODS[name])
    with pretended_mac(monkeypatch) as device:
        latents = torch.randn(6, 4, 16, 16, device=device)
        push = method.push(particles_of(latents, latents, device=device))
        changes = list(push.changes or ())
        push.diagnostics()
        assert all(change.device == device for change in changes)


@pytest.mark.parametrize(
    "measure",
    [metrics.vendi_score, partial(metrics.frechet_distance, torch.ones(4, 3))],
    ids=["one-set", "two-sets"],
)
def test_features_on_a_mac_are_measured_on_the_cpu(measure, monkeypatch):
    with pretended_mac(monkeypatch) as device, warnings.catch_warnings():
        warnings.simplefilter("ignore", metrics.SmallSetWarning)
        features = torch.randn(4, 3, device=device)
        assert math.isfinite(measure(features))


@pytest.mark.parametrize(
    "wrong",
    [torch.pdist, torch.Tensor.double, torch.linalg.eigvalsh, lambda x: x.to(torch.float64)],
)
def test_what_mps_lacks_is_refused(wrong, monkeypatch):
    with pretended_mac(monkeypatch) as device:
        x = torch.randn(4, 4).to(device)
        with pytest.raises((NotImplementedError, TypeError), match="MPS has no"):
            wrong(x)
