"""Weights in tensor subclasses, as quantising libraries make them."""

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten


class OpaqueWeight(Tensor):
    """Weights in int8 with a scale for each row; knows few operators, and tells no inner tensor."""

    @staticmethod
    def __new__(cls, values, scale):
        return Tensor._make_wrapper_subclass(cls, values.shape, dtype=scale.dtype)

    def __init__(self, values, scale):
        self.values, self.scale = values, scale

    @classmethod
    def of(cls, weight):
        scale = weight.flatten(1).abs().amax(dim=1).view(-1, *[1] * (weight.ndim - 1)) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (aten.detach.default, aten.alias.default):
            return cls(args[0].values, args[0].scale)
        if func in (aten.t.default, aten.mm.default, aten.addmm.default, aten.convolution.default):
            plain = tree_map_only(OpaqueWeight, lambda each: each.values * each.scale, args)
            return func(*plain, **(kwargs or {}))
        raise NotImplementedError(f"{cls.__name__} has no {func}")


class Int8Weight(OpaqueWeight):
    """The same with torch's protocol that tells the inner tensors, as in torchao."""

    def __tensor_flatten__(self):
        return ["values", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, *_):
        return cls(inner["values"], inner["scale"])


class NamedWeight(Tensor):
    """A subclass with a storage of its own, as GGUF's."""


def quantise(network, kind, layers=nn.Linear):
    """Exchanges the weights of all layers of a kind."""
    for module in network.modules():
        if isinstance(module, layers):
            weight = module.weight.detach()
            new = weight.as_subclass(kind) if kind is NamedWeight else kind.of(weight)
            module.weight = nn.Parameter(new, requires_grad=False)
