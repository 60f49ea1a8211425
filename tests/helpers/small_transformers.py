"""diffusers' pipelines of newer families, with small random transformers and text embeddings."""

import diffusers
import torch

from helpers.small_pipelines import COUNT, noise, scheduler_of

SIZE = {"height": 64, "width": 96}
"""Latents of 8 x 12 positions."""
FLOW = "flow-euler"


def embeddings(width=16, masks=(), tokens=5):
    """Text embeddings of a prompt and of a negative prompt, and masks of these names."""
    mask = torch.ones(1, tokens, dtype=torch.long)
    given = {"prompt_embeds": noise(1, 1, tokens, width)}
    given |= {name: mask for name in masks}
    negative = {f"negative_{name}": value for name, value in given.items()}
    return given | negative | {"negative_prompt_embeds": noise(51, 1, tokens, width)}


def an_image_each(call):
    """Embeddings repeated for each image, where a pipeline does not repeat their masks."""
    rows = {name: value.expand(COUNT, *value.shape[1:]) for name, value in call.items()}
    return {**rows, "num_images_per_prompt": 1}


def without_encoders(kind, transformer, vae=None, scheduler=FLOW, **more):
    """A pipeline of a class, which gets embeddings and returns latents."""
    parts = {"text_encoder": None, "tokenizer": None, "vae": vae}
    return getattr(diffusers, kind)(
        transformer=transformer, scheduler=scheduler_of(scheduler), **parts, **more
    )


def packed(kind, **more):
    return getattr(diffusers, kind)(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        **more,
    )


def flux_true_cfg(guidance_embeds=False):
    transformer = packed(
        "FluxTransformer2DModel",
        pooled_projection_dim=12,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    encoders = {"text_encoder_2": None, "tokenizer_2": None}
    pooled = {
        "pooled_prompt_embeds": noise(3, 1, 12),
        "negative_pooled_prompt_embeds": noise(4, 1, 12),
    }
    pipeline = without_encoders("FluxPipeline", transformer, **encoders)
    return pipeline, {**embeddings(), **pooled, **SIZE, "true_cfg_scale": 4.0}


def flux_with_embedded_guidance():
    pipeline, call = flux_true_cfg(guidance_embeds=True)
    call = {name: value for name, value in call.items() if "negative" not in name}
    return pipeline, {**call, "true_cfg_scale": 1.0, "guidance_scale": 3.5}


def chroma():
    transformer = packed(
        "ChromaTransformer2DModel",
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    call = an_image_each(embeddings(masks=("prompt_attention_mask",)))
    call = {name: value.float() for name, value in call.items() if name != "num_images_per_prompt"}
    return without_encoders("ChromaPipeline", transformer), {
        **call,
        **SIZE,
        "num_images_per_prompt": 1,
    }


def flux_2_klein():
    transformer = packed(
        "Flux2Transformer2DModel",
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
    )
    return without_encoders("Flux2KleinPipeline", transformer, vae), {**embeddings(), **SIZE}


def qwen_image():
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    call = embeddings(masks=("prompt_embeds_mask",))
    return without_encoders("QwenImagePipeline", transformer), {**call, **SIZE}


def z_image():
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 32, 32],
    )
    call = {name: list(value) for name, value in embeddings().items()}
    return without_encoders("ZImagePipeline", transformer), {**call, **SIZE}


def sana():
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    call = embeddings(masks=("prompt_attention_mask",)) | {"negative_prompt": None}
    # Without an autoencoder this pipeline takes latents to be images over 32
    size = {"height": 256, "width": 384, "use_resolution_binning": False}
    return without_encoders("SanaPipeline", transformer, scheduler="flow-dpm++"), {**call, **size}


def lumina_2():
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(64, 32, 32),
        cap_feat_dim=16,
    )
    call = an_image_each(embeddings(masks=("prompt_attention_mask",)))
    return without_encoders("Lumina2Pipeline", transformer), {**call, **SIZE}


def auraflow():
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pos_embed_max_size=256,
    )
    call = embeddings(masks=("prompt_attention_mask",))
    return without_encoders("AuraFlowPipeline", transformer), {**call, **SIZE}


def cogview_4():
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=16,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )
    return without_encoders("CogView4Pipeline", transformer), {**embeddings(), **SIZE}


def hunyuan_image():
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(4, 4),
    )
    call = embeddings(masks=("prompt_embeds_mask",))
    call |= {f"{name}_2": value for name, value in call.items()}
    encoders = {"text_encoder_2": None, "tokenizer_2": None}
    guider = diffusers.guiders.AdaptiveProjectedMixGuidance()
    pipeline = without_encoders("HunyuanImagePipeline", transformer, **encoders, guider=guider)
    return pipeline, {**call, "height": 256, "width": 384}


def lumina():
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        cross_attention_dim=16,
    )
    call = an_image_each(embeddings(masks=("prompt_attention_mask",)))
    return without_encoders("LuminaPipeline", transformer), {**call, "height": 64, "width": 64}


FAMILIES = [
    flux_true_cfg,
    flux_with_embedded_guidance,
    flux_2_klein,
    chroma,
    qwen_image,
    z_image,
    sana,
    lumina_2,
    auraflow,
    cogview_4,
    hunyuan_image,
    lumina,
]
