"""Hostile arguments: each is accepted for a reason, or refused by name before any work."""

import collections
import inspect
import math
import re
from dataclasses import fields
from numbers import Real
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastrepulse
from fastrepulse import Bank, Correction, Repulsion, embeddings
from fastrepulse.kernels import rbf_repulsion
from fastrepulse.layers.attention import ATTENTIONS
from fastrepulse.methods.base import Method
from fastrepulse.models import SCHEDULERS
from fastrepulse.sampling.corrections import KINDS
from fastrepulse.sampling.request import LONG_PROMPTS, Computing, Drawing, Output

REFUSED = collections.Counter()
EXAMPLES = 60

numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, 1, -1, 0.5, 1e300, 10**400])
)
HOSTILE = st.one_of(
    numbers,
    st.none(),
    st.booleans(),
    st.text(max_size=4),
    st.sampled_from(
        ["", "auto", "median", "euler", "thirds", "a/b", "\ud800", "\0", "cuda:9", "no"]
    ),
    st.binary(max_size=3),
    st.lists(st.one_of(numbers, st.text(max_size=2)), max_size=3),
    st.tuples(numbers, numbers),
    st.dictionaries(st.text(max_size=1), st.integers(), max_size=1),
    st.builds(object),
    st.sampled_from([1j, math.sin, int, torch.zeros(2), torch.zeros(1, 4, 16, 16), torch.float16]),
)


def is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value):
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(float(value))


def is_window(value):
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(x, Real) for x in value)
        and value[0] > value[1] >= 0
    )


def is_text(value):
    texts = [value] if isinstance(value, str) else value
    return (
        isinstance(texts, (list, tuple))
        and len(texts) > 0
        and all(isinstance(t, str) and not re.search("[\0\ud800-\udfff]", t) for t in texts)
    )


def or_none(accepts):
    return lambda value: value is None or accepts(value)


def or_auto(accepts):
    return lambda value: value == "auto" or accepts(value)


SAMPLE = {
    "prompt": is_text,
    "num_particles": is_count,
    "repulsion": lambda v: v is None or isinstance(v, Method) or v in embeddings.names(),
    "num_inference_steps": or_none(is_count),
    "guidance_scale": or_none(is_number),
    "negative_prompt": or_none(is_text),
    "scheduler": lambda v: v in SCHEDULERS,
    "seed": or_none(lambda v: isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63),
    "generator": or_none(lambda v: isinstance(v, torch.Generator)),
    "latents": or_none(lambda v: isinstance(v, torch.Tensor)),
    "corrections": lambda v: isinstance(v, (list, tuple)) and not v,
    "micro_batch_size": or_none(is_count),
    "compile": lambda v: isinstance(v, bool) or v == "auto",
    "attention": lambda v: v in ATTENTIONS,
    "long_prompts": lambda v: v in LONG_PROMPTS,
    "checkpoint_every": or_none(lambda v: is_number(v) and v >= 0),
    "out": or_none(lambda v: isinstance(v, str)),
    "progress": lambda v: isinstance(v, bool),
}
REPULSION = {
    "embedding": lambda v: callable(v) or v in embeddings.names(),
    "strength": or_none(is_number),
    "on": lambda v: v in ("noisy", "denoised"),
    "window": or_auto(is_window),
    "pause": or_none(or_auto(is_window)),
    "restart": or_none(or_auto(is_window)),
    "bandwidth": lambda v: v == "median" or (is_number(v) and v > 0),
    "bank": or_none(lambda v: isinstance(v, Bank)),
    "subset": or_none(lambda v: isinstance(v, int) and v >= 2),
}
CORRECTION = {
    "kind": lambda v: v in KINDS,
    "steps": is_count,
    "step_size": or_none(lambda v: is_number(v) and v > 0),
    "window": is_window,
}


def safely(accepts, value):
    """What a predicate says of a value that it may not even be able to compare."""
    try:
        return bool(accepts(value))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def accepted_or_refused(make, name, value, accepts):
    try:
        make(value)
    except (ValueError, TypeError, OSError) as error:
        assert name in str(error), f"{name}={value!r}: {error!r} names no argument"
        assert not safely(accepts, value) or name in ("prompt", "negative_prompt", "out"), value
        REFUSED[name] += 1
    else:
        assert safely(accepts, value), f"{name}={value!r} was accepted"


def drawing(**arguments):
    return Drawing(**{"prompt": "a planet", "num_particles": 2, **arguments})


def output(**arguments):
    Output(**arguments).check_new()


def cases():
    owners = {field.name: drawing for field in fields(Drawing)}
    owners |= {field.name: Computing for field in fields(Computing)}
    owners |= {field.name: output for field in fields(Output)}
    assert set(owners) == set(inspect.signature(fastrepulse.sample).parameters)
    for name, accepts in SAMPLE.items():
        make = owners[name]
        yield pytest.param(
            lambda v, make=make, name=name: make(**{name: v}), name, accepts, id=f"sample-{name}"
        )
    for kind, arguments in ((Repulsion, REPULSION), (Correction, CORRECTION)):
        for name, accepts in arguments.items():
            yield pytest.param(
                lambda v, kind=kind, name=name: kind(**{name: v}),
                name,
                accepts,
                id=f"{kind.__name__}-{name}",
            )


@pytest.mark.parametrize(("make", "name", "accepts"), cases())
def test_hostile_arguments_are_refused_by_name(
    make, name, accepts, tmp_path, monkeypatch, record_property
):
    monkeypatch.chdir(tmp_path)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(HOSTILE)
    def each(value):
        accepted_or_refused(make, name, value, accepts)

    before = sum(REFUSED.values())
    each()
    refused = sum(REFUSED.values()) - before
    # Summed up in conftest.py
    record_property("refused", refused)
    assert refused >= 8 or name == "out"


def bad_pairs():
    x = torch.zeros(3, 2)
    yield {"x": torch.zeros(3)}, "x"
    yield {"x": torch.zeros(3, 2, 1)}, "x"
    yield {"x": torch.zeros(3, 2, dtype=torch.long)}, "x"
    yield {"x": [[0.0, 1.0]]}, "x"
    yield {"x": None}, "x"
    yield {"x": x, "y": torch.zeros(3, 4)}, "y"
    yield {"x": x, "y": x.double()}, "y"
    yield {"x": x, "y": "x"}, "y"
    yield {"x": x, "weights": torch.ones(2)}, "weights"
    yield {"x": x, "weights": torch.ones(3, 1)}, "weights"
    yield {"x": x, "weights": [1, 1, 1]}, "weights"
    for bandwidth in (0.0, -1.0, math.nan, math.inf, "mean", None, torch.zeros(2), [1.0], 1j):
        yield {"x": x, "bandwidth": bandwidth}, "bandwidth"
    for backend in ("cuda", "", 3, b"native"):
        yield {"x": x, "backend": backend}, "backend"


@pytest.mark.parametrize(("arguments", "name"), bad_pairs(), ids=lambda v: str(v)[:40])
def test_the_operation_refuses_by_name(arguments, name):
    with pytest.raises((ValueError, TypeError), match=name):
        rbf_repulsion(**{"bandwidth": 1.0, **arguments})


def test_a_path_of_any_kind_is_a_bank_or_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none", Path("/"), "\0"):
        with pytest.raises((ValueError, OSError)):
            Bank.load(path)
