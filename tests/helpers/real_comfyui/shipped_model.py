"""The shipped model as a ComfyUI checkpoint, in ComfyUI's own classes."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import fastrepulse

WEIGHTS = Path(fastrepulse.__file__).parent / "default_model" / "weights"
CLIP_WORDS = 49408
"""The vocabulary of every CLIP in ComfyUI."""


class OneAndAHalf:
    """Times an int it is an int: ComfyUI multiplies channels by whole numbers only."""

    def __mul__(self, channels):
        return channels * 3 // 2

    __rmul__ = __mul__


UNET = {
    "use_checkpoint": False,
    "image_size": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "adm_in_channels": None,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [1, 1, 0],
    "channel_mult": [1, OneAndAHalf(), 2],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "use_linear_in_transformer": True,
    "context_dim": 128,
    "num_heads": -1,
    "num_head_channels": 32,
    "use_temporal_attention": False,
    "use_temporal_resblock": False,
}
VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 24,
    "ch_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
GROUPS, VAE_GROUPS = 16, 8


def load():
    """Returns (MODEL, CLIP, VAE) of the shipped model."""
    import comfy.sd

    register()
    return comfy.sd.load_state_dict_guess_config(checkpoint())[:3]


def save(path):
    save_file(checkpoint(), path)


def checkpoint():
    """Returns all weights under the names of a Stable Diffusion checkpoint."""
    import comfy.utils

    unet = load_file(WEIGHTS / "unet" / "diffusion_pytorch_model.safetensors")
    names = comfy.utils.unet_to_diffusers(UNET)
    out = {f"model.diffusion_model.{names[key]}": weight for key, weight in unet.items()}
    text = load_file(WEIGHTS / "text_encoder" / "model.safetensors")
    # transformers 5 saves without "text_model.", transformers 4 with it
    text = {key.removeprefix("text_model."): weight for key, weight in text.items()}
    words = text["embeddings.token_embedding.weight"]
    unused = words.new_zeros(CLIP_WORDS - len(words), words.shape[1])
    text["embeddings.token_embedding.weight"] = torch.cat([words, unused])
    out |= {f"cond_stage_model.transformer.text_model.{key}": each for key, each in text.items()}
    vae = load_file(WEIGHTS / "vae" / "diffusion_pytorch_model.safetensors")
    out |= {f"first_stage_model.{key}": weight for key, weight in _original_names(vae).items()}
    return {key: weight.contiguous() for key, weight in out.items()}


def _original_names(vae):
    """Returns the weights of diffusers' autoencoder under the names of the original one."""
    renamed = {
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2",
    }
    for level in range(3):
        renamed |= {
            f"down_blocks.{level}.resnets": f"down.{level}.block",
            f"down_blocks.{level}.downsamplers.0": f"down.{level}.downsample",
            f"up_blocks.{level}.resnets": f"up.{2 - level}.block",
            f"up_blocks.{level}.upsamplers.0": f"up.{2 - level}.upsample",
        }
    out = {}
    for key, weight in vae.items():
        for old, new in renamed.items():
            key = key.replace(old, new)
        out[key] = weight
    # ComfyUI's autoencoders attend in the middle, the shipped one does not
    for half in ("encoder", "decoder"):
        channels = len(out[f"{half}.mid.block_1.conv2.bias"])
        for part in ("norm", "q", "k", "v", "proj_out"):
            shape = (channels,) if part == "norm" else (channels, channels, 1, 1)
            out[f"{half}.mid.attn_1.{part}.weight"] = torch.zeros(shape)
            out[f"{half}.mid.attn_1.{part}.bias"] = torch.zeros(channels)
    return out


def register():
    """Teaches ComfyUI to recognise the shipped model."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models
    import comfy.supported_models_base
    from transformers import PreTrainedTokenizerFast

    class Latent(comfy.latent_formats.SD15):
        def __init__(self):
            super().__init__()
            config = json.loads((WEIGHTS / "vae" / "config.json").read_text())
            self.scale_factor = config["scaling_factor"]

    class TextEncoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None, **_):
            super().__init__(
                device=device,
                dtype=dtype,
                max_length=24,
                layer="last",
                textmodel_json_config=json.loads(
                    (WEIGHTS / "text_encoder" / "config.json").read_text()
                ),
                special_tokens={"start": 0, "end": 1, "pad": 1},
                return_projected_pooled=False,
                model_options=model_options or {},
            )

    class Words(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None, **_):
            super().__init__(
                str(WEIGHTS / "tokenizer"),
                max_length=24,
                min_length=24,
                embedding_directory=embedding_directory,
                embedding_size=128,
                embedding_key="clip_shipped",
                tokenizer_class=PreTrainedTokenizerFast,
                tokenizer_data=tokenizer_data or {},
            )

    class Clip(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None, **how):
            how |= {"clip_name": "shipped", "clip_model": TextEncoder}
            super().__init__(device=device, dtype=dtype, model_options=model_options or {}, **how)

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                embedding_directory=embedding_directory,
                tokenizer_data=tokenizer_data or {},
                clip_name="shipped",
                tokenizer=Words,
            )

    class Shipped(comfy.supported_models_base.BASE):
        latent_format = Latent
        memory_usage_factor = 1.0

        @classmethod
        def matches(cls, unet_config, state_dict=None):
            return (unet_config.get("model_channels"), unet_config.get("context_dim")) == (64, 128)

        def __init__(self, unet_config):
            super().__init__(dict(UNET))

        def model_type(self, state_dict, prefix=""):
            return comfy.model_base.ModelType.V_PREDICTION

        def get_model(self, state_dict, prefix="", device=None):
            model = super().get_model(state_dict, prefix, device)
            for module in model.modules():
                if isinstance(module, torch.nn.GroupNorm):
                    module.num_groups = GROUPS
            return model

        def process_clip_state_dict(self, state_dict):
            own = super().process_clip_state_dict(state_dict)
            return {f"clip_shipped.{key}": weight for key, weight in own.items()}

        def clip_target(self, state_dict=None):
            return comfy.supported_models_base.ClipTarget(Tokenizer, Clip)

        def process_vae_state_dict(self, state_dict):
            return state_dict

    Shipped.unet_extra_config = {}
    Shipped.supported_inference_dtypes = [torch.float32]
    comfy.supported_models.models.insert(0, Shipped)
    _register_vae()


def _register_vae():
    """ComfyUI knows autoencoders of 128 channels in 32 groups alone."""
    import comfy.ldm.modules.diffusionmodules.model as blocks
    import comfy.sd

    usual, plain = comfy.sd.VAE.__init__, blocks.ops

    class FewerGroups(plain):
        @staticmethod
        def GroupNorm(num_groups, num_channels, **how):
            return plain.GroupNorm(VAE_GROUPS, num_channels, **how)

    def init(self, sd=None, device=None, config=None, dtype=None, metadata=None):
        first = (sd or {}).get("encoder.conv_in.weight")
        if first is None or len(first) != VAE["ch"]:
            return usual(self, sd, device, config, dtype, metadata)
        blocks.ops = FewerGroups
        try:
            config = {"params": {"ddconfig": VAE, "embed_dim": 4}}
            usual(self, sd, device, config, torch.float32, metadata)
        finally:
            blocks.ops = plain
        self.downscale_ratio = self.upscale_ratio = 4

    comfy.sd.VAE.__init__ = init
