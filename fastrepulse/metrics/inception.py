"""The Inception network of the Fréchet inception distance, from a local file of weights."""

from collections import OrderedDict
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from fastrepulse.metrics.spaces import Backbone


def inception_backbone(weights: str | Path) -> Backbone:
    """Returns the thesis's backbone: content 2,048, location 35 x 35, style 64 and its Gram 2,080.

    The network is torch-fidelity's (`pip install "fastrepulse[inception]"`), which pools as the
    network of Heusel et al. 2017 did; torchvision's does not, and its weights are others. Pictures
    are resized with antialiasing, which theirs were not: distances of pictures of another size than
    299 are not to be compared with published ones.

    Args:
        weights: A safetensors file with the names of `pt_inception-2015-12-05`, the weights of
            pytorch-fid and torch-fidelity. They are published as a pickle: convert it once, by
            torch's loader with `weights_only=True` and `safetensors.torch.save_file`.

    Raises:
        ImportError: If torch-fidelity is not there.
        ValueError: If `weights` is no such file, or its weights are not those of this network.
    """
    weights = Path(weights)
    if weights.suffix != ".safetensors" or not weights.is_file():
        raise ValueError(f"weights must be a safetensors file, got {str(weights)!r}")
    network = network_without_weights()
    # The classifier behind the features is not used
    state = {k: v.float() for k, v in load_file(weights).items() if not k.startswith("fc.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"weights must be of FID's Inception, {weights} is not: {error}") from None
    return Backbone(
        "inception",
        network.eval(),
        content="AvgPool",
        location="MaxPool_2",
        style="MaxPool_1",
        size=299,
        # (byte - 128) / 128, as the network was trained
        mean=(128 / 255,) * 3,
        std=(128 / 255,) * 3,
    )


def network_without_weights() -> nn.Module:
    """Returns the network up to its pooled features, with random weights."""
    # Not through its own class, which unpickles its weights
    from torch_fidelity.feature_extractor_inceptionv3 import (
        BasicConv2d,
        InceptionA,
        InceptionB,
        InceptionC,
        InceptionD,
        InceptionE_1,
        InceptionE_2,
    )

    return nn.Sequential(
        OrderedDict(
            Conv2d_1a_3x3=BasicConv2d(3, 32, kernel_size=3, stride=2),
            Conv2d_2a_3x3=BasicConv2d(32, 32, kernel_size=3),
            Conv2d_2b_3x3=BasicConv2d(32, 64, kernel_size=3, padding=1),
            MaxPool_1=nn.MaxPool2d(3, stride=2),
            Conv2d_3b_1x1=BasicConv2d(64, 80, kernel_size=1),
            Conv2d_4a_3x3=BasicConv2d(80, 192, kernel_size=3),
            MaxPool_2=nn.MaxPool2d(3, stride=2),
            Mixed_5b=InceptionA(192, pool_features=32),
            Mixed_5c=InceptionA(256, pool_features=64),
            Mixed_5d=InceptionA(288, pool_features=64),
            Mixed_6a=InceptionB(288),
            Mixed_6b=InceptionC(768, channels_7x7=128),
            Mixed_6c=InceptionC(768, channels_7x7=160),
            Mixed_6d=InceptionC(768, channels_7x7=160),
            Mixed_6e=InceptionC(768, channels_7x7=192),
            Mixed_7a=InceptionD(768),
            Mixed_7b=InceptionE_1(1280),
            Mixed_7c=InceptionE_2(2048),
            AvgPool=nn.AdaptiveAvgPool2d(1),
        )
    )
