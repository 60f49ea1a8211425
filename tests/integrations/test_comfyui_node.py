"""What the ComfyUI node takes, refuses and shows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastrepulse import embeddings, integrations
from fastrepulse.integrations.comfyui.hooks import NAME
from helpers.comfyui_stand_in import (
    Patcher,
    repelling,
    run,
)

FOLDER = Path(integrations.__file__).parent / "comfyui"
PUSH_ALONE = {"pause_guidance": False, "restart": False}


@pytest.mark.parametrize(
    "arguments, named", [({"window": (1.0, 2.0)}, "high > low"), ({"embedding": "x"}, "embedding")]
)
def test_bad_values_are_refused(node, arguments, named):
    with pytest.raises(ValueError, match=named):
        repelling(node, **arguments)


def test_a_model_that_repels_already_is_refused(node):
    with pytest.raises(ValueError, match="does not repel already"):
        node.patch(repelling(node), 1.0, "thirds", 0, 0, 0)


@pytest.mark.parametrize(
    "shape, window, message",
    [
        ((1, 4, 16, 16), (0, 0), "a batch of one has nothing to repel from"),
        ((3, 4, 16, 16), (5.0, 4.0), "no step is pushed: .* from 5 to 4, .* 14, 8, 3"),
        ((3, 4, 16, 16), (2.0, 0.1), "no step is pushed"),
    ],
)
def test_a_run_without_push_is_told_on_the_page(node, page, caplog, shape, window, message):
    patcher = repelling(node, window=window, unique_id="7", **PUSH_ALONE)
    levels = [14.0, 8.0, 3.0, 0.0] if window != (2.0, 0.1) else [14.0, 1.0, 0.0]
    drawn = run(patcher, levels, shape=shape)
    assert torch.equal(drawn, run(Patcher(), levels, shape=shape))
    ((who, text),) = page
    assert who == "7"
    assert re.search(message, text)
    assert f"{NAME} pushes nothing: {text}" in caplog.messages


def test_the_page_says_what_happens_in_a_run(node, page, caplog):
    levels = [14.0, 8.0, 6.0, 3.0, 2.0, 0.9, 0.2, 0.0]
    run(repelling(node, unique_id="7"), levels, cfg=3.0)
    assert page == [
        (
            "7",
            "2 of 7 steps are pushed; guidance pauses in 5; "
            "one restart goes from noise level 0.9 to 3",
        )
    ]
    assert not caplog.messages


def test_every_embedding_that_is_offered_fits_any_model(node):
    offered = node.INPUT_TYPES()["required"]["embedding"][0]
    assert not {"decoded_mean", "style_classifier", "style_thirds"} & set(offered)
    for name in offered:
        for channels in (4, 16):
            levels = [14.0, 8.0, 6.0, 0.0]
            drawn = run(repelling(node, embedding=name), levels, shape=(3, channels, 16, 16))
            assert not torch.equal(drawn, run(Patcher(), levels, shape=(3, channels, 16, 16)))


def test_a_factor_of_one_is_the_strength_of_the_embedding(node):
    for name in ("thirds", "gram"):
        (hook,) = repelling(node, embedding=name).functions
        assert hook.__self__.repulsion.strength == embeddings.build(name).strength


def test_every_input_and_output_has_a_tooltip(node):
    inputs = node.INPUT_TYPES()
    for name, (_, options) in (inputs["required"] | inputs["optional"]).items():
        assert options["tooltip"], name
    assert len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES)


def test_the_node_runs_without_diffusers_and_transformers():
    program = (
        "import sys\n"
        "for name in 'diffusers transformers tokenizers huggingface_hub typer rich'.split():\n"
        "    sys.modules[name] = None\n"
        "import torch\n"
        "from fastrepulse.integrations.comfyui import NODE_CLASS_MAPPINGS\n"
        "from helpers.comfyui_stand_in import Exploding, Guider, Patcher, euler\n"
        "node = NODE_CLASS_MAPPINGS['FastRepulse']()\n"
        "patcher = node.patch(Patcher(), 1.0, 'thirds', 0, 0, 0)[0]\n"
        "guider = Guider(patcher, lambda x, sigma, given: 0.1 * x, Exploding(), 3.0)\n"
        "levels = torch.tensor([14.0, 8, 6, 3, 0.9, 0])\n"
        "print(guider.sample(euler, torch.randn(3, 4, 16, 16), levels).isfinite().all().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.stdout.strip() == "True", done.stderr


def test_the_example_workflow_fits_the_node(package, node):
    workflow = json.loads((FOLDER / "example_workflows" / "repulsion.json").read_text())
    nodes = {each["id"]: each for each in workflow["nodes"]}
    for link, source, slot, target, place, kind in workflow["links"]:
        output, taken = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert link in output["links"] and taken["link"] == link
        assert output["type"] == taken["type"] == kind
    (ours,) = [each for each in nodes.values() if each["type"] in package.NODE_CLASS_MAPPINGS]
    inputs = node.INPUT_TYPES()
    inputs = inputs["required"] | inputs["optional"]
    assert [given["type"] for given in ours["inputs"]] == [inputs.pop("model")[0]]
    node.patch(Patcher(), **dict(zip(inputs, ours["widgets_values"], strict=True)))
    for value, (kind, options) in zip(ours["widgets_values"], inputs.values(), strict=True):
        if isinstance(kind, list):
            assert value in kind and options["default"] in kind
        elif kind == "BOOLEAN":
            assert isinstance(value, bool)
        else:
            assert options["min"] <= value <= options["max"]
