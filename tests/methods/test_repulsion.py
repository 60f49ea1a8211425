import math
from dataclasses import replace

import pytest
import torch

from fastrepulse import Repulsion, embeddings
from fastrepulse.kernels import median_bandwidth
from fastrepulse.methods import pull_back
from fastrepulse.methods.diagnostics import mean_distance
from fastrepulse.methods.step_length import MAX_MOVE
from helpers.drawn import particles_of

WIDTHS = {
    "decoded_mean": 3,
    "channel_mean": 4,
    "halves": 8,
    "thirds": 48,
    "pooled": 64,
    "random_cnn": 64,
    "style_classifier": 64,
    "style_thirds": 768,
    "gram": 2080,
}


def draw(n=6, side=16, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, side, side, generator=generator, dtype=torch.float64).to(dtype)


def push_of(repulsion, latents, **state):
    """r_i of every particle, and the diagnostics of the first prompt."""
    # So weak that no push reaches the bound
    weak = replace(repulsion, strength=1e-3, window=(math.inf, 0.0))
    particles = particles_of(latents, **state)
    push = weak.push(particles)
    return torch.cat(list(push.changes)) * 1e3 * particles.sigma, push.prompts[0]


@pytest.mark.parametrize("side", [8, 16, 17, 20])
@pytest.mark.parametrize("name", embeddings.names())
def test_embeddings_have_their_width_and_treat_rows_alone(name, side):
    latents = draw(side=side)
    embed = embeddings.build(name)
    embedded = embed(latents)
    assert embedded.shape == (6, WIDTHS.get(name, 4 * side * side))
    torch.testing.assert_close(embed(latents[2:3]), embedded[2:3])


@pytest.mark.parametrize("name", embeddings.names())
def test_pull_back_is_the_adjoint_of_the_jacobian(name):
    embed = embeddings.build(name)
    latents, direction = draw(n=3, side=8).double(), draw(n=3, side=8, seed=1).double()
    embedded, jvp = torch.func.jvp(embed, (latents,), (direction,))
    force = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(2)).double()
    rows, pull_back = embed.vjp(latents)
    torch.testing.assert_close(rows, embedded.to(rows.dtype))
    change = pull_back(force.float())
    assert (change * direction).sum().item() == pytest.approx(
        (force * jvp).sum().item(), rel=1e-4, abs=1e-4
    )


def test_channel_mean_and_halves_by_hand():
    latents = torch.zeros(1, 4, 4, 4)
    latents[0, 0, :, :2] = 2.0  # left half of channel 0
    latents[0, 1, :2] = 4.0  # top half of channel 1
    assert embeddings.build("channel_mean")(latents).tolist() == [[1.0, 2.0, 0.0, 0.0]]
    halves = embeddings.build("halves")(latents)[0].tolist()
    assert halves == [2.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0]


def test_random_cnn_is_drawn_anew_each_step_and_repeats_with_the_seed():
    embed, latents = embeddings.build("random_cnn"), draw()
    drawn = []
    for seed, step in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        embed.prepare(seed, step, 0.0)
        drawn.append(embed(latents))
    assert torch.equal(drawn[0], drawn[3])
    assert not torch.allclose(drawn[0], drawn[1]) and not torch.allclose(drawn[0], drawn[2])


@pytest.mark.parametrize("on", ["noisy", "denoised"])
@pytest.mark.parametrize("name", embeddings.names())
def test_a_small_step_along_the_push_moves_particles_apart(name, on):
    latents = draw(seed=1)
    change, _ = push_of(Repulsion(name, on=on), latents, sigma=2.0)
    step = 0.01 * latents.norm() / change.norm()
    embed = embeddings.build(name)
    here, apart, together = (
        mean_distance(embed(latents + sign * step * change)) for sign in (0, 1, -1)
    )
    assert together < here < apart


def test_push_by_hand_for_two_particles():
    latents = torch.zeros(2, 1, 2, 2)
    latents[1] = 1.0
    change, push = push_of(Repulsion("channel_mean", on="noisy"), latents)
    h = 1 / math.log(2)
    force = 2 / h * math.exp(-1 / h)
    assert push.bandwidth.item() == pytest.approx(h)
    assert push.force_norm.item() == pytest.approx(force)
    assert push.mean_distance.item() == pytest.approx(1.0)
    # straight apart; at 2x2 latents eight times the root mean square of 16x16
    torch.testing.assert_close(change[1], 8 * torch.ones(1, 2, 2))
    torch.testing.assert_close(change[0], -change[1])


def test_a_bandwidth_of_the_users_own_counts_for_its_size_alone():
    latents = draw()
    by_median, push = push_of(Repulsion("pooled"), latents)
    h = push.bandwidth.item()
    given, _ = push_of(Repulsion("pooled", bandwidth=h), latents)
    torch.testing.assert_close(given, by_median)
    other, _ = push_of(Repulsion("pooled", bandwidth=h / 9), latents)
    assert not torch.allclose(other, by_median, atol=0.1)


@pytest.mark.parametrize("name", ["channel_mean", "random_cnn"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_every_push_is_as_long_as_the_strength_says(name, scale):
    embed = embeddings.build(name)
    scaled = Repulsion(lambda z: embed(z) * scale, 0.2, window=(math.inf, 0.0))
    change = torch.cat(list(scaled.push(particles_of(draw(), sigma=4.0, next_sigma=3.9)).changes))
    length = change.square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(length, torch.full((6,), 0.2 / 4.0))


@pytest.mark.parametrize("strength", [300.0, -300.0])
def test_a_push_is_no_longer_than_the_noise_that_is_left(strength):
    latents, sigma, following = draw(), 4.0, 3.0
    weak, _ = push_of(Repulsion("pooled"), latents, sigma=sigma)

    def moved(following):
        repulsion = Repulsion("pooled", strength, window=(math.inf, 0.0))
        push = repulsion.push(particles_of(latents, sigma=sigma, next_sigma=following))
        return sigma * (sigma - following) * torch.cat(list(push.changes))

    far = moved(following)
    length = far.square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(length, torch.full((6,), MAX_MOVE * following))
    cosine = torch.cosine_similarity(far.flatten(1), weak.flatten(1))
    torch.testing.assert_close(cosine, torch.full((6,), math.copysign(1, strength)))
    assert not moved(0.0).any()


@pytest.mark.parametrize("name", ["pooled", "random_cnn"])
def test_a_subset_of_all_is_all_and_a_small_one_is_right_on_average(name):
    latents = draw(n=12)
    whole, _ = push_of(Repulsion(name), latents)
    torch.testing.assert_close(push_of(Repulsion(name, subset=12), latents)[0], whole)
    assert not torch.allclose(push_of(Repulsion(name, subset=11), latents)[0], whole)


def test_a_small_subset_is_right_on_average():
    latents, drawn = draw(n=12), Repulsion("pooled", subset=6)
    mean = sum(push_of(drawn, latents, step=step)[0] for step in range(60)) / 60
    whole, _ = push_of(Repulsion("pooled"), latents)
    assert torch.cosine_similarity(mean.flatten(), whole.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("name", ["channel_mean", "halves", "pooled", "latent"])
def test_the_push_has_the_same_length_per_dimension_at_every_size(name):
    small = draw(n=8, side=8)
    large = small.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    change, _ = push_of(Repulsion(name), small)
    finer, _ = push_of(Repulsion(name), large)
    # An average over 16 times as many latents has a quarter of the noise
    ratio = 1 if name == "latent" else 4
    torch.testing.assert_close(ratio * finer[:, :, ::4, ::4], change, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("copies", [2, 5])
def test_exact_duplicates_part_and_the_way_they_do_is_repeatable(copies):
    latents = draw(n=1).expand(copies, -1, -1, -1)
    change, _ = push_of(Repulsion("pooled"), latents, seed=3)
    again, _ = push_of(Repulsion("pooled"), latents, seed=3)
    assert torch.isfinite(change).all() and change.abs().max() > 0
    assert torch.equal(change, again)
    assert torch.pdist((latents + change).flatten(1)).min() > 0


def test_prompts_repel_on_their_own():
    latents = draw(n=10)
    both, _ = push_of(Repulsion("thirds"), latents, num_particles=5)
    alone, _ = push_of(Repulsion("thirds"), latents[5:])
    torch.testing.assert_close(both[5:], alone)


@pytest.mark.parametrize("n", [2, 9, 50])
def test_mean_distance_in_pieces(n):
    embedded = draw(n=n).flatten(1)
    expected = torch.pdist(embedded).mean().item()
    assert mean_distance(embedded).item() == pytest.approx(expected, rel=1e-5)
    assert mean_distance(embedded, rows=7).item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("on", ["noisy", "denoised"])
@pytest.mark.parametrize("name", ["thirds", "random_cnn"])
def test_graphs_that_are_kept_or_made_again_give_the_same(name, on, monkeypatch):
    latents, built = draw(n=8), embeddings.build(name)
    kept, _ = push_of(Repulsion(name, on=on), latents)
    calls = []

    def embed(x):
        calls.append(len(x))
        return built(x)

    for most, passes in [(pull_back.MAX_GRAPH_BYTES, [3, 3, 2]), (1, [3, 3, 2] * 2)]:
        monkeypatch.setattr(pull_back, "MAX_GRAPH_BYTES", most)
        calls.clear()
        built.prepare(0, 0, 0.0)
        again, _ = push_of(Repulsion(embed, strength=built.strength, on=on), latents)
        assert calls == passes
        torch.testing.assert_close(again, kept)


@pytest.mark.parametrize("on", ["noisy", "denoised"])
def test_an_embedding_that_runs_out_of_memory_goes_half_by_half(on):
    latents, thirds, largest = draw(n=8), embeddings.build("thirds"), []

    def dear(x):
        if len(x) > 1:
            raise torch.OutOfMemoryError
        largest.append(len(x))
        return thirds(x)

    expected, _ = push_of(Repulsion("thirds", on=on), latents)
    got, _ = push_of(Repulsion(dear, 0.4, on=on), latents)
    torch.testing.assert_close(got, expected)
    assert len(largest) == 16

    def too_dear(x):
        raise torch.OutOfMemoryError("not even one")

    with pytest.raises(torch.OutOfMemoryError, match="not even one"):
        push_of(Repulsion(too_dear, 0.4, on=on), latents)


@pytest.mark.parametrize("embedded", [torch.zeros(4, 3), torch.ones(4, 3)], ids=["zeros", "ones"])
def test_bandwidth_of_coincident_particles_is_positive(embedded):
    assert median_bandwidth(embedded) > 0


def test_two_particles_feel_a_force():
    assert median_bandwidth(torch.tensor([[0.0], [1.0]])) == pytest.approx(1 / math.log(2))


def test_a_function_is_an_embedding_and_must_return_rows():
    assert push_of(Repulsion(lambda x: x[:, :1].flatten(1)), draw())[0].any()
    with pytest.raises(ValueError, match=r"\[3, d\], got \(12, 256\)"):
        push_of(Repulsion(lambda x: x.reshape(-1, 256)), draw())


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"embedding": "colour"}, ValueError, "'colour'"),
        ({"embedding": 3}, TypeError, "3"),
        ({"strength": math.nan}, ValueError, "nan"),
        ({"strength": math.inf}, ValueError, "inf"),
        ({"on": "latent"}, ValueError, "'latent'"),
        ({"window": (1.0, 5.0)}, ValueError, r"\(1.0, 5.0\)"),
        ({"window": (1.0, 1.0)}, ValueError, r"\(1.0, 1.0\)"),
        ({"window": (math.nan, 0.0)}, ValueError, "nan"),
        ({"window": (1.0, -1.0)}, ValueError, "-1.0"),
        ({"window": (1.0,)}, ValueError, r"\(1.0,\)"),
        ({"window": None}, TypeError, "None"),
        ({"bandwidth": 0.0}, ValueError, "0.0"),
        ({"bandwidth": "mean"}, TypeError, "'mean'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, named):
    with pytest.raises(error, match=named):
        Repulsion(**arguments)


def test_window_is_closed_and_strength_zero_is_never_active():
    repulsion = Repulsion(window=(5.0, 1.0), strength=1.0)
    assert [repulsion.active_at(s) for s in (5.1, 5.0, 3.0, 1.0, 0.9)] == [0, 1, 1, 1, 0]
    assert not Repulsion(strength=0.0).active_at(1.0)
