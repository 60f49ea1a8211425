"""Flow models of ComfyUI's own classes with random weights, small enough for a test."""

import dataclasses

import torch

FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 32,
    "context_in_dim": 32,
    "hidden_size": 32,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 6, 6],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
}
SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 1,
    "input_size": None,
    "adm_in_channels": 32,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 32, "out_features": 64},
    },
    "num_patches": 36864,
    "pos_embed_max_size": 192,
    "pos_embed_scaling_factor": None,
}
QWEN_IMAGE = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (4, 6, 6),
    "patch_size": 2,
}


def flux():
    import comfy.ldm.flux.model
    import comfy.supported_models

    # Later versions want one more setting
    known = {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}
    more = {"txt_ids_dims": []} if "txt_ids_dims" in known else {}
    return _patcher(comfy.supported_models.Flux({**FLUX, **more}))


def sd3():
    import comfy.supported_models

    return _patcher(comfy.supported_models.SD3(dict(SD3)))


def qwen_image():
    import comfy.supported_models

    return _patcher(comfy.supported_models.QwenImage(dict(QWEN_IMAGE)))


def text(seed, tokens=6, width=32):
    """Random text embeddings in ComfyUI's form."""
    generator = torch.Generator().manual_seed(seed)
    embedded = torch.randn(1, tokens, width, generator=generator)
    return [[embedded, {"pooled_output": torch.randn(1, width, generator=generator)}]]


def _patcher(config):
    """Returns a ModelPatcher with the model of a configuration."""
    import comfy.model_patcher

    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    generator = torch.Generator().manual_seed(0)
    # ComfyUI leaves what it expects to load uninitialised
    for name, weight in model.diffusion_model.named_parameters():
        size = 0.5 / max(weight[0].numel(), 1) ** 0.5 if weight.ndim > 1 else 0.02
        scales = weight.ndim == 1 and name.endswith(("norm.weight", "scale", "norm_q.weight"))
        weight.data = size * torch.randn(weight.shape, generator=generator) + scales
    for buffer in model.diffusion_model.buffers():
        if buffer.is_floating_point() and not buffer.isfinite().all():
            buffer.zero_()
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)
