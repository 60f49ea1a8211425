import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import fastrepulse
from fastrepulse import Correction, Repulsion, embeddings, repel
from fastrepulse.integrations import RepulsiveScheduler
from fastrepulse.methods.bank import Bank
from helpers import small_pipelines as small
from helpers.drawn import particles_of

EVERYWHERE = (math.inf, 0.0)
WEAK = 1e-6


def change_of(repulsion, latents, **state):
    particles = particles_of(latents, **{"sigma": 2.0, "last": True, **state})
    return torch.cat(list(repulsion.push(particles).changes))


def draw(n, seed=0):
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["pooled", "random_cnn", "latent"])
def test_a_second_batch_feels_the_first_as_in_one_joint_batch(name):
    latents = draw(9)
    bank = Bank()
    repulsion = Repulsion(name, WEAK, on="noisy", window=EVERYWHERE, bank=bank)
    change_of(repulsion, latents[:5])
    assert len(bank) == 5
    second = change_of(repulsion, latents[5:], seed=7)
    assert len(bank) == 9
    joint = change_of(Repulsion(name, WEAK, on="noisy", window=EVERYWHERE), latents)
    torch.testing.assert_close(second, joint[5:])


@pytest.mark.parametrize("name", ["pooled", "random_cnn"])
def test_single_particles_repel_from_those_before(name):
    latents = draw(4)
    bank = Bank()
    repulsion = Repulsion(name, WEAK, on="noisy", window=EVERYWHERE, bank=bank)
    assert not change_of(repulsion, latents[:1]).any()
    for own in latents[1:3].split(1):
        change_of(repulsion, own)
    last = change_of(repulsion, latents[3:])
    joint = change_of(Repulsion(name, WEAK, on="noisy", window=EVERYWHERE), latents)
    torch.testing.assert_close(last, joint[3:])


def test_one_picture_at_a_time_with_a_bank_on_the_shipped_model():
    repulsion = Repulsion("pooled", 1.0, window=(math.inf, 1.5), pause=None, bank=Bank())

    def draw_one(repulsion, seed):
        how = {"num_inference_steps": 8, "progress": False, "seed": seed}
        return fastrepulse.sample("a potted plant", 1, repulsion=repulsion, **how)

    alone = [draw_one(None, seed).latents for seed in range(3)]
    together = [draw_one(repulsion, seed) for seed in range(3)]
    assert len(repulsion.bank) == 3
    assert together[1].diagnostics[0].bandwidth > 0
    torch.testing.assert_close(together[0].latents, alone[0])
    embed = embeddings.build("pooled")

    def distance(latents):
        return torch.pdist(embed(torch.cat(latents))).mean().item()

    assert distance([one.latents for one in together]) > 1.05 * distance(alone)


def test_a_run_counts_when_its_last_step_is_done():
    bank = Bank()
    repulsion = Repulsion("pooled", window=EVERYWHERE, bank=bank)
    change_of(repulsion, draw(4), step=0, last=False)
    assert len(bank) == 0
    change_of(repulsion, draw(4), step=1)
    assert len(bank) == 4


def test_a_run_that_was_stopped_leaves_nothing():
    bank = Bank()
    repulsion = Repulsion("pooled", window=EVERYWHERE, bank=bank)
    for step in range(3):
        change_of(repulsion, draw(4), step=step, last=False, sigma=9.0 - step, seed=3)
    # Of another size and on other noise levels, and shorter
    other = torch.randn(5, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    for step in range(2):
        change_of(repulsion, other, step=step, last=step == 1, sigma=4.0 - step)
    assert len(bank) == 5 and bank.seed == 0
    with pytest.raises(ValueError, match="latents"):
        change_of(repulsion, draw(4), sigma=4.0)


def test_a_run_that_was_stopped_at_once_leaves_not_even_its_seed():
    bank = Bank()
    repulsion = Repulsion("random_cnn", window=EVERYWHERE, bank=bank)
    change_of(repulsion, draw(4), last=False, seed=3)
    change_of(repulsion, draw(4), seed=7)
    assert bank.seed == 7


def part_of_a_run(repulsion, seed, steps=3):
    for step in range(steps):
        change_of(repulsion, draw(4, seed), step=step, last=False, sigma=9.0 - 2 * step, seed=seed)


def test_a_run_that_ends_before_its_last_step_is_added_up_to_its_noise_level(caplog, tmp_path):
    repulsion = Repulsion("pooled", window=EVERYWHERE, bank=Bank())
    part_of_a_run(repulsion, 0)
    assert repulsion.bank.close() == 5.0 and len(repulsion.bank) == 4
    assert repulsion.bank.close() is None
    part_of_a_run(repulsion, 1)
    assert not caplog.records
    repulsion.bank.save(tmp_path / "bank")
    part_of_a_run(repulsion, 2, steps=1)
    assert [record.args for record in caplog.records] == [("5",), ("5",)]
    assert "leaves out a run that ended at noise level 5, before its last step" in caplog.text
    assert len(repulsion.bank) == len(Bank.load(tmp_path / "bank")) == 4


def test_the_bank_of_a_pipeline_with_denoising_end_says_what_it_leaves_out(caplog):
    pipe, call = small.made(small.stable_diffusion_xl, "euler")
    bank = Bank()
    pipe.scheduler = RepulsiveScheduler(pipe.scheduler, Repulsion("halves", bank=bank))
    call |= {"num_inference_steps": 5, "denoising_end": 0.8, "num_images_per_prompt": 2}
    for added in (0, 2):
        pipe(**call, output_type="latent")
        assert len(bank) == added
        level = bank.close()
        assert 0 < level < 5 and len(bank) == added + 2
    assert "leaves out a run" not in caplog.text
    pipe(**call, output_type="latent")
    pipe(**call, output_type="latent")
    assert "leaves out a run" in caplog.text


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2])
def test_repel_adds_a_call_that_ends_before_its_last_step(micro_batch_size):
    pipe, call = small.made(small.stable_diffusion_xl, "euler")
    bank = Bank()
    call |= {"num_inference_steps": 5, "denoising_end": 0.8, "output_type": "latent"}
    repelled = repel(pipe, Repulsion("halves", bank=bank))
    for count in (2, 4):
        if micro_batch_size is None:
            repelled(**call, num_images_per_prompt=2)
        else:
            repelled.sample(None, 2, micro_batch_size=micro_batch_size, progress=False, **call)
        assert len(bank) == count and bank.close() is None


def test_corrections_at_the_last_step_count_a_particle_once():
    repulsion = Repulsion("pooled", window=EVERYWHERE, bank=Bank())
    how = {"num_inference_steps": 3, "progress": False, "seed": 0}
    corrections = [Correction("langevin", 2, 0.01)]
    fastrepulse.sample("a planet", 2, repulsion=repulsion, corrections=corrections, **how)
    assert len(repulsion.bank) == 2


def test_embeddings_of_one_kind_are_told_apart():
    bank = Bank()
    change_of(Repulsion(embeddings.Gram("latent"), window=EVERYWHERE, bank=bank), draw(4))
    again = Repulsion(embeddings.Gram("latent"), window=EVERYWHERE, bank=bank)
    change_of(again, draw(4))
    other = embeddings.Gram(lambda z: z)
    with pytest.raises(ValueError, match=r"embedding 'gram\(latent\)' and a run of"):
        change_of(Repulsion(other, window=EVERYWHERE, bank=bank), draw(4))


def test_it_is_the_same_after_a_night_on_the_disk(tmp_path):
    bank = Bank(pictures=draw(2, seed=3))
    repulsion = Repulsion("random_cnn", WEAK, window=EVERYWHERE, bank=bank)
    change_of(repulsion, draw(4))
    bank.save(tmp_path / "new" / "bank.safetensors")
    loaded = Bank.load(tmp_path / "new" / "bank.safetensors")
    again = Repulsion("random_cnn", WEAK, window=EVERYWHERE, bank=loaded)
    torch.testing.assert_close(
        change_of(again, draw(4, seed=1)), change_of(repulsion, draw(4, seed=1))
    )


def test_pictures_repel():
    latents = draw(3)
    alone = change_of(Repulsion("pooled", WEAK, window=EVERYWHERE), latents)
    bank = Bank(pictures=latents[:1] + 0.01)
    beside = change_of(Repulsion("pooled", WEAK, window=EVERYWHERE, bank=bank), latents)
    # The first is all but one of the pictures, so it is the one that is pushed otherwise
    assert (beside - alone)[0].norm() > 0
    away = (latents[1] - bank.pictures[0]).flatten()
    assert torch.dot((beside - alone)[1].flatten(), away) > 0


def test_pictures_attract_and_do_not_stop_the_repulsion(tmp_path):
    latents, embed = draw(6), embeddings.build("pooled")
    near = latents[3:4] + 0.1 * draw(1, seed=9)
    by_itself = change_of(Repulsion("pooled", WEAK, window=EVERYWHERE), latents)
    bank = Bank(like=near)
    drawn = change_of(Repulsion("pooled", WEAK, window=EVERYWHERE, bank=bank), latents)
    moved = embed(latents + 0.1 * latents.norm() * drawn / drawn.norm())
    target = embed(near)
    closer = torch.cdist(moved, target) < torch.cdist(embed(latents), target)
    # One is there already
    assert closer[[0, 1, 2, 4, 5]].all()
    # A repelling picture in the same place does the opposite to the particle that is nearest
    unlike = change_of(
        Repulsion("pooled", WEAK, window=EVERYWHERE, bank=Bank(pictures=near)), latents
    )
    assert torch.dot((drawn - by_itself)[3].flatten(), (unlike - by_itself)[3].flatten()) < 0
    bank.save(tmp_path / "bank")
    again = Bank.load(tmp_path / "bank")
    torch.testing.assert_close(
        change_of(Repulsion("pooled", WEAK, window=EVERYWHERE, bank=again), latents), drawn
    )


def test_split_batches_differ_more_with_a_bank_on_the_shipped_model():
    embed = embeddings.build("pooled")

    def distance(bank):
        always = {"window": (math.inf, 2.0), "pause": (math.inf, 0.3)}
        repulsion = Repulsion("pooled", 40.0, **always, bank=bank)
        first, second = (
            fastrepulse.sample(
                "a potted plant",
                3,
                repulsion=repulsion,
                seed=seed,
                num_inference_steps=8,
                progress=False,
            ).latents
            for seed in range(2)
        )
        return torch.cdist(embed(first), embed(second)).mean().item()

    assert distance(Bank()) > 1.05 * distance(None)


@pytest.mark.parametrize(
    ("unlike", "named"),
    [
        ({"name": "thirds"}, "embedding 'pooled' and a run of 'thirds'"),
        ({"on": "noisy"}, "on 'denoised' and a run of 'noisy'"),
        ({"latents": torch.randn(4, 4, 16, 16)}, r"latents \[4, 8, 8\] and a run of \[4, 16, 16\]"),
        ({"sigma": 3.0}, "one of 2 at step 0 and a run of 3"),
        ({"num_particles": 2}, "prompts 1 and a run of 2"),
    ],
)
def test_another_kind_of_run_is_refused(unlike, named):
    bank = Bank()
    change_of(Repulsion("pooled", bank=bank, window=EVERYWHERE), draw(4))
    name, on = unlike.pop("name", "pooled"), unlike.pop("on", "denoised")
    latents = unlike.pop("latents", draw(4))
    with pytest.raises(ValueError, match=named):
        change_of(Repulsion(name, on=on, bank=bank, window=EVERYWHERE), latents, **unlike)


def test_bad_banks_are_named(tmp_path):
    with pytest.raises(TypeError, match="bank must be a Bank or None, got True"):
        Repulsion(bank=True)
    with pytest.raises(ValueError, match=r"pictures must be \[M, C, H, W\], got \(3, 3\)"):
        Bank(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"like must be \[M, C, H, W\], got \(0, 4, 8, 8\)"):
        Bank(like=torch.zeros(0, 4, 8, 8))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Bank.load(tmp_path / "none")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    (tmp_path / "noise").write_bytes(b"noise")
    for name in ("other", "noise"):
        with pytest.raises(ValueError, match="cannot be used"):
            Bank.load(tmp_path / name)
    with pytest.raises(ValueError, match="on='denoised', got 'noisy'"):
        change_of(Repulsion("pooled", on="noisy", window=EVERYWHERE, bank=Bank(draw(1))), draw(3))
    with pytest.raises(ValueError, match=r"must be \[4, 8, 8\] like the latents"):
        bank = Bank(torch.zeros(1, 4, 16, 16))
        change_of(Repulsion("pooled", window=EVERYWHERE, bank=bank), draw(3))


def test_what_is_only_measured_is_remembered():
    bank = Bank()
    measured = Repulsion("pooled", 0, window=EVERYWHERE, bank=bank)
    assert measured.push(particles_of(draw(4), sigma=2.0, last=True)).changes is None
    assert len(bank) == 4
    repelled = Repulsion("pooled", window=EVERYWHERE)
    alone, after = (change_of(replace(repelled, bank=b), draw(3, seed=1)) for b in (None, bank))
    assert not torch.allclose(alone, after)
