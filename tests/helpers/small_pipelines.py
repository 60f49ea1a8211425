"""diffusers' pipelines with small random weights, and their schedulers."""

import diffusers
import pytest
import torch

from fastrepulse.noise import initial_noise
from fastrepulse.schedule import noise_level, signal_at

COUNT = 3
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1}),
    "ddim-zero-snr": (
        "DDIMScheduler",
        {"clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "lcm": ("LCMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "flow-dpm++": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ),
    "flow-dpm++dynamic": (
        "DPMSolverMultistepScheduler",
        {
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
            "use_dynamic_shifting": True,
            "time_shift_type": "exponential",
        },
    ),
    "flow-unipc": (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
    ),
}
# With zero signal at the last timestep, noise prediction is undefined: diffusers returns NaN
NOISE = [name for name in SCHEDULERS if "flow" not in name and name != "ddim-zero-snr"]


def scheduler_of(short, prediction="epsilon"):
    name, settings = SCHEDULERS[short]
    if "flow" not in short:
        settings = {**BETAS, "prediction_type": prediction, **settings}
    return getattr(diffusers, name)(**settings)


def noise(seed, *shape):
    return initial_noise(seed, shape[0], shape[1:])


def small_unet(in_channels=4, **arguments):
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        **arguments,
    )


def small_vae(channels=4, **arguments):
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        **arguments,
    )


def text(seed, prompts, width=16):
    return {
        "prompt_embeds": noise(seed, prompts, 5, width),
        "negative_prompt_embeds": noise(seed + 50, prompts, 5, width),
    }


def pooled_text(prompts):
    return {
        "pooled_prompt_embeds": noise(3, prompts, 12),
        "negative_pooled_prompt_embeds": noise(4, prompts, 12),
    }


def stable_diffusion(
    prompts, kind="StableDiffusionPipeline", in_channels=4, unet=None, **components
):
    pipeline = getattr(diffusers, kind)(
        vae=small_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet or small_unet(in_channels),
        scheduler=scheduler_of("euler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **components,
    )
    return pipeline, {**text(1, prompts), "height": 16, "width": 16}


def stable_diffusion_2(prompts):
    return stable_diffusion(prompts, unet=small_unet(use_linear_projection=True))


def image_to_image(prompts):
    pipeline, call = stable_diffusion(prompts, "StableDiffusionImg2ImgPipeline")
    del call["height"], call["width"]
    return pipeline, {**call, "image": noise(7, 1, 3, 16, 16).clamp(-1, 1), "strength": 0.8}


def masked():
    mask = torch.zeros(1, 1, 16, 16)
    mask[:, :, 4:] = 1
    return {"image": noise(7, 1, 3, 16, 16).clamp(-1, 1), "mask_image": mask, "strength": 1.0}


def inpainting(prompts):
    pipeline, call = stable_diffusion(prompts, "StableDiffusionInpaintPipeline", in_channels=9)
    return pipeline, {**call, **masked()}


def inpainting_without_its_own_unet(prompts):
    pipeline, call = stable_diffusion(prompts, "StableDiffusionInpaintPipeline")
    return pipeline, {**call, **masked()}


def controlnet(prompts):
    unet = small_unet()
    control = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8))
    pipeline, call = stable_diffusion(
        prompts, "StableDiffusionControlNetPipeline", unet=unet, controlnet=control
    )
    return pipeline, {**call, "image": noise(7, prompts, 3, 16, 16).clamp(0, 1)}


def lora(prompts):
    peft = pytest.importorskip("peft")
    pipeline, call = stable_diffusion(prompts)
    pipeline.unet.add_adapter(
        peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    )
    return pipeline, call


def stable_diffusion_xl(prompts):
    unet = small_unet(
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 12,
    )
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=small_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=scheduler_of("euler"),
        add_watermarker=False,
    )
    return pipeline, {**text(1, prompts), **pooled_text(prompts), "height": 16, "width": 16}


def small_text_encoder(kind, tokenizer, seed, width=8, **more):
    """A CLIP text encoder with random weights for a tokenizer's vocabulary."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, kind)(config).eval()


def whole_stable_diffusion_xl(tokenizer):
    """A pipeline with both text encoders, which accepts prompts."""
    pipeline, _ = made(stable_diffusion_xl, "euler")
    first = small_text_encoder("CLIPTextModel", tokenizer, 1, width=6)
    kind = "CLIPTextModelWithProjection"
    second = small_text_encoder(kind, tokenizer, 2, width=10, projection_dim=12)
    pipeline.register_modules(
        text_encoder=first, text_encoder_2=second, tokenizer=tokenizer, tokenizer_2=tokenizer
    )
    return pipeline


def whole_stable_diffusion_3(tokenizer):
    """A pipeline with two of the three text encoders, which accepts prompts."""
    pipeline, _ = made(stable_diffusion_3, "flow-euler")
    kind = "CLIPTextModelWithProjection"
    first = small_text_encoder(kind, tokenizer, 1, width=6, projection_dim=4)
    second = small_text_encoder(kind, tokenizer, 2, width=10, projection_dim=8)
    pipeline.register_modules(
        text_encoder=first, text_encoder_2=second, tokenizer=tokenizer, tokenizer_2=tokenizer
    )
    pipeline.tokenizer_max_length = tokenizer.model_max_length
    return pipeline


def stable_diffusion_3(prompts):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=12,
        pos_embed_max_size=16,
    )
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=scheduler_of("flow-euler"),
        vae=small_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    # This pipeline does not repeat the given embeddings for each image
    embeds = {**text(1, prompts), **pooled_text(prompts)}
    repeated = {name: given.repeat_interleave(COUNT, dim=0) for name, given in embeds.items()}
    return pipeline, {**repeated, "num_images_per_prompt": 1, "height": 16, "width": 16}


def flux(prompts):
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 4, 8),
    )
    pipeline = diffusers.FluxPipeline(
        scheduler=scheduler_of("flow-euler"),
        vae=small_vae(shift_factor=0.06, scaling_factor=1.5),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    embeds = {
        "prompt_embeds": noise(1, prompts, 5, 16),
        "pooled_prompt_embeds": noise(3, prompts, 12),
    }
    return pipeline, {**embeds, "height": 16, "width": 24}


def pixart(prompts, kind="PixArtAlphaPipeline"):
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=16,
        num_embeds_ada_norm=1000,
        use_additional_conditions=False,
    )
    pipeline = getattr(diffusers, kind)(
        transformer=transformer,
        scheduler=scheduler_of("dpm++"),
        vae=small_vae(),
        text_encoder=None,
        tokenizer=None,
    )
    attention = torch.ones(prompts, 5)
    masks = {"prompt_attention_mask": attention, "negative_prompt_attention_mask": attention}
    size = {"height": 16, "width": 16, "use_resolution_binning": False}
    return pipeline, {"negative_prompt": None, **text(1, prompts), **masks, **size}


def pixart_sigma(prompts):
    return pixart(prompts, "PixArtSigmaPipeline")


def made(family, short, prediction="epsilon", prompts=1):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline, call = family(prompts)
    pipeline.scheduler = scheduler_of(short, prediction)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, call


def signal_and_noise(scheduler, step):
    """alpha and sigma of a scheduler's sample before a step, x = alpha x0 + sigma noise."""
    level = noise_level(scheduler, step)
    alpha = signal_at(scheduler, level)
    return alpha, alpha * level
