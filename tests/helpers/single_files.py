"""Single-file checkpoints of diffusers' models, with the original code's names of weights."""

import torch
from safetensors.torch import save_file

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def under(state, prefix):
    """The weights whose names start with a prefix, with the prefix removed."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def renamed(state, prefix, names):
    """Renames weights under a prefix; `names` is {original name: diffusers' name}."""
    result = {}
    for original, ours in names.items():
        for key, value in under(state, f"{prefix}{ours}.").items():
            result[f"{original}.{key}"] = value
    return result


def unet_weights(unet):
    state, layers = unet.state_dict(), unet.config.layers_per_block
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.1": "mid_block.attentions.0",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    resnets = {"middle_block.0": "mid_block.resnets.0", "middle_block.2": "mid_block.resnets.1"}
    levels = len(unet.config.block_out_channels)
    for level in range(levels):
        first = 1 + level * (layers + 1)
        for layer in range(layers):
            resnets[f"input_blocks.{first + layer}.0"] = f"down_blocks.{level}.resnets.{layer}"
            names[f"input_blocks.{first + layer}.1"] = f"down_blocks.{level}.attentions.{layer}"
        names[f"input_blocks.{first + layers}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for layer in range(layers + 1):
            block = f"output_blocks.{level * (layers + 1) + layer}"
            resnets[f"{block}.0"] = f"up_blocks.{level}.resnets.{layer}"
            names[f"{block}.1"] = f"up_blocks.{level}.attentions.{layer}"
        attends = any(key.startswith(f"up_blocks.{level}.attentions.") for key in state)
        names[f"{block}.{1 + attends}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    result = renamed(state, "", names)
    for original, ours in resnets.items():
        parts = renamed(under(state, f"{ours}."), "", RESNET)
        result |= {f"{original}.{key}": value for key, value in parts.items()}
    assert len(result) == len(state)
    return {f"model.diffusion_model.{key}": value for key, value in result.items()}


def vae_weights(vae):
    state, layers = vae.state_dict(), vae.config.layers_per_block
    levels = len(vae.config.block_out_channels)
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side, direction, count in (("encoder", "down", layers), ("decoder", "up", layers + 1)):
        names[f"{side}.conv_in"] = f"{side}.conv_in"
        names[f"{side}.norm_out"] = f"{side}.conv_norm_out"
        names[f"{side}.conv_out"] = f"{side}.conv_out"
        names[f"{side}.mid.block_1"] = f"{side}.mid_block.resnets.0"
        names[f"{side}.mid.block_2"] = f"{side}.mid_block.resnets.1"
        attention = f"{side}.mid_block.attentions.0"
        parts = {
            "norm": "group_norm",
            "q": "to_q",
            "k": "to_k",
            "v": "to_v",
            "proj_out": "to_out.0",
        }
        names |= {f"{side}.mid.attn_1.{k}": f"{attention}.{v}" for k, v in parts.items()}
        for level in range(levels):
            block = f"{side}.{direction}_blocks.{level}"
            number = level if direction == "down" else levels - 1 - level
            for layer in range(count):
                ours = f"{side}.{direction}.{number}.block.{layer}"
                names[ours] = f"{block}.resnets.{layer}"
            sampler = {"down": "downsample", "up": "upsample"}[direction]
            names[f"{side}.{direction}.{number}.{sampler}.conv"] = f"{block}.{sampler}rs.0.conv"
    result = renamed(state, "", names)
    assert len(result) == len(state)
    result = {key.replace("conv_shortcut", "nin_shortcut"): v for key, v in result.items()}
    for key, value in result.items():
        if ".attn_1." in key and key.endswith("weight") and value.ndim == 2:
            result[key] = value[:, :, None, None]
    return {f"first_stage_model.{key}": value for key, value in result.items()}


def clip_weights(encoder, prefix):
    """Text encoder weights in Stable Diffusion 1: transformers' names with a prefix."""
    state = encoder.state_dict()
    wrapped = any(key.startswith("text_model.") for key in state)
    return {f"{prefix}{'' if wrapped else 'text_model.'}{key}": v for key, v in state.items()}


def open_clip_weights(encoder, prefix):
    """Text encoder weights in Stable Diffusion 2 and XL's second encoder: open_clip's names."""
    state = {key.removeprefix("text_model."): v for key, v in encoder.state_dict().items()}
    width = state["embeddings.token_embedding.weight"].shape[1]
    result = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.tensor(1.0),
        "text_projection": state.get("text_projection.weight", torch.eye(width)).T.contiguous(),
    }
    for number in range(encoder.config.num_hidden_layers):
        own = under(state, f"encoder.layers.{number}.")
        block = renamed(own, "", CLIP_BLOCK)
        for kind in ("weight", "bias"):
            parts = [own[f"self_attn.{name}_proj.{kind}"] for name in "qkv"]
            block[f"attn.in_proj_{kind}"] = torch.cat(parts)
        result |= {f"transformer.resblocks.{number}.{key}": v for key, v in block.items()}
    return {f"{prefix}{key}": value for key, value in result.items()}


def checkpoint_weights(pipe, kind):
    weights = {**unet_weights(pipe.unet), **vae_weights(pipe.vae)}
    if kind == "sd1":
        weights |= clip_weights(pipe.text_encoder, "cond_stage_model.transformer.")
    elif kind == "sd2":
        weights |= open_clip_weights(pipe.text_encoder, "cond_stage_model.model.")
    else:
        weights |= clip_weights(pipe.text_encoder, "conditioner.embedders.0.transformer.")
        weights |= open_clip_weights(pipe.text_encoder_2, "conditioner.embedders.1.model.")
    return weights


def write(path, weights, metadata=None):
    tensors = {key: value.contiguous().clone() for key, value in weights.items()}
    save_file(tensors, path, {"format": "pt", **(metadata or {})})
    return path
