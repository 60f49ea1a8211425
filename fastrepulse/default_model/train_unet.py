"""Trains the default model's UNet and text encoder together, on latents of rendered pictures.

    python -m fastrepulse.default_model.train_unet --data data --out model

Every 500 steps `<out>/weights` gets a diffusers StableDiffusionPipeline of the averaged weights, so
that progress can be looked at.
"""

import argparse
import copy
import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fastrepulse.default_model.captions import Subject
from fastrepulse.default_model.subjects import SUBJECTS
from fastrepulse.default_model.train_autoencoder import load_pictures, to_float
from fastrepulse.default_model.training import Trainer

MAX_TOKENS = 24
TEXT_WIDTH = 128
CHANNELS = (64, 96, 128)
EMPTY_CAPTIONS = 0.2  # of the half of a batch that is drawn evenly
MIN_SNR_GAMMA = 5.0


def build_tokenizer() -> CLIPTokenizer:
    """Learns a byte-pair vocabulary in which every word of every caption is one token."""
    words = {"and"}
    for subject in SUBJECTS:
        words.update(subject.caption({}).split())
        for attribute in subject.attributes:
            for value in attribute.values:
                words.update(subject.caption({attribute.name: value}).split())
    start, end = "<|startoftext|>", "<|endoftext|>"
    learner = Tokenizer(models.BPE(unk_token=end, end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.train_from_iterator(
        sorted(words),
        trainers.BpeTrainer(
            vocab_size=4000,
            min_frequency=1,
            special_tokens=[start, end],
            end_of_word_suffix="</w>",
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]
    # A letter that ends no word of a caption still needs its token, for prompts of other words
    vocab = {token: i for i, token in enumerate(learned["vocab"])}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(f"{letter}</w>", len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=tuple(width // 32 for width in CHANNELS),  # that is: heads of width 32
        use_linear_projection=True,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 2, with its v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor, cache: Path) -> tuple[Tensor, Tensor]:
    """Returns the scaled mean and standard deviation of every picture's latents, once."""
    if not cache.exists():
        parts = [
            vae.encode(to_float(chunk)).latent_dist
            for chunk in tqdm(pictures.split(64), desc="encode")
        ]
        scale = vae.config.scaling_factor
        mean, std = (
            torch.cat([getattr(p, name) for p in parts]) * scale for name in ("mean", "std")
        )
        save_file({"mean": mean.half().contiguous(), "std": std.half().contiguous()}, cache)
    latents = load_file(cache)
    return latents["mean"], latents["std"]


class Captions:
    """Draws pictures, and writes a fresh random caption each time that one is shown.

    Half of a batch is drawn evenly, with captions from empty to full: what a sparse prompt means.
    The other half has full captions and favours pictures of rare values (one eye, a curl), so that
    these are learnt as well as the common ones; sparse prompts keep the data's own frequencies.
    """

    def __init__(self, data: Path, tokenizer: CLIPTokenizer):
        with np.load(data / "train.npz") as arrays:
            subjects = [SUBJECTS[i] for i in arrays["subjects"]]
        drawn = json.loads((data / "train.json").read_text())
        self.described = [
            (subject, subject.attributes_of(options))
            for subject, options in zip(subjects, drawn, strict=True)
        ]
        shown = Counter(key for picture in self.described for key in self._values(*picture))
        rarity = [
            sum(1 / shown[key] for key in self._values(*picture)) for picture in self.described
        ]
        self.rarity = torch.tensor(rarity)
        self.tokenizer = tokenizer
        self.rng = random.Random(0)

    @staticmethod
    def _values(subject: Subject, attributes: dict[str, str]) -> list[tuple[str, str, str]]:
        return [(subject.name, name, word) for name, word in attributes.items()]

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns the numbers of pictures [B] and their captions' tokens [B, MAX_TOKENS]."""
        evenly = torch.randint(len(self.described), (size - size // 2,))
        rare = torch.multinomial(self.rarity, size // 2)
        texts = []
        for i in evenly.tolist():
            subject, attributes = self.described[i]
            empty = self.rng.random() < EMPTY_CAPTIONS
            texts.append("" if empty else subject.random_caption(attributes, self.rng))
        for i in rare.tolist():
            subject, attributes = self.described[i]
            texts.append(subject.caption(attributes))
        encoded = self.tokenizer(
            texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        order = torch.randperm(size)  # timesteps are drawn by place in the batch
        return torch.cat([evenly, rare])[order], encoded.input_ids[order]


def save_pipeline(
    out: Path,
    trainer: Trainer,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
) -> None:
    """Writes the averaged weights as a diffusers pipeline in half precision."""
    averaged = {"unet": copy.deepcopy(unet), "text": copy.deepcopy(text_encoder)}
    trainer.copy_average(averaged)
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=averaged["text"].half(),
        tokenizer=tokenizer,
        unet=averaged["unet"].half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out / "weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="A pipeline's folder, to start from its weights")
    parser.add_argument("--steps", type=int, default=13000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(args.out / "vae", low_cpu_mem_usage=False)
    vae = vae.to(memory_format=torch.channels_last)
    pictures = load_pictures(args.data / "train.npz")
    mean, std = encode(vae, pictures, args.out / "latents.safetensors")
    tokenizer = build_tokenizer()
    captions = Captions(args.data, tokenizer)
    if args.start:
        text_encoder = CLIPTextModel.from_pretrained(args.start / "text_encoder").float()
        unet = UNet2DConditionModel.from_pretrained(args.start / "unet", low_cpu_mem_usage=False)
    else:
        text_encoder, unet = build_text_encoder(tokenizer), build_unet()
    unet = unet.float().to(memory_format=torch.channels_last).train()
    text_encoder.train()
    modules = {"unet": unet, "text": text_encoder}
    trainer = Trainer(modules, args.out / "train_unet", args.steps, args.lr, ema=0.998)

    alphas = build_scheduler().alphas_cumprod
    progress = tqdm(trainer.remaining(), total=args.steps, initial=trainer.step, mininterval=10)
    running = float("nan")
    for step in progress:
        index, tokens = captions.batch(args.batch_size)
        x0 = mean[index].float()
        x0 = x0 + std[index].float() * torch.randn_like(x0)
        # One timestep from each of B equal parts of the schedule: less variance than free draws
        t = (torch.arange(args.batch_size) + torch.rand(args.batch_size)) / args.batch_size * 1000
        t = t.long().clamp(max=999)
        alpha, sigma = (
            alphas[t].sqrt()[:, None, None, None],
            (1 - alphas[t]).sqrt()[:, None, None, None],
        )
        noise = torch.randn_like(x0)
        noisy = (alpha * x0 + sigma * noise).contiguous(memory_format=torch.channels_last)
        text = text_encoder(tokens)[0]
        predicted = unet(noisy, t, encoder_hidden_states=text).sample
        snr = alphas[t] / (1 - alphas[t])
        weight = snr.clamp(max=MIN_SNR_GAMMA) / (snr + 1)  # Hang et al. 2023, arXiv:2303.09556
        error = (predicted - (alpha * noise - sigma * x0)).square().mean(dim=(1, 2, 3))
        loss = (weight * error).mean()
        trainer.update(loss)
        running = loss.item() if math.isnan(running) else 0.99 * running + 0.01 * loss.item()
        if step % 100 == 99:
            progress.write(f"step {step + 1}: loss {running:.4f}")
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            save_pipeline(args.out, trainer, unet, text_encoder, tokenizer, vae)


if __name__ == "__main__":
    main()
