"""A pretended Mac: tensors without values on the meta device, which knows what MPS knows."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastrepulse import native, torch_settings
from fastrepulse.default_model.style_classifier import load_style_classifier
from fastrepulse.kernels import ops

LACKING_DTYPES = (torch.float64, torch.complex128)
LACKING = """
    _adaptive_avg_pool3d _addmm_activation
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams _int_mm _linalg_eigh _linalg_eigvals
    _linalg_svd _pdist_backward _pdist_forward _scaled_mm _slow_conv2d_backward
    _slow_conv2d_forward _upsample_bicubic2d_aa_backward _upsample_bilinear2d_aa_backward
    _upsample_lanczos2d_aa adaptive_avg_pool3d adaptive_max_pool3d binomial channel_shuffle
    fractional_max_pool2d frexp geqrf heaviside linalg_eig linalg_eigvals linalg_ldl_factor_ex
    linalg_lstsq linalg_lu_solve linalg_matrix_exp logit_ logspace mode ormqr poisson put_
    segment_reduce slow_conv3d_forward slow_conv_dilated2d special_log_ndtr special_ndtri take
""".split()  # noqa: SIM905
"""Operators of torch 2.13 with a CPU kernel and none for MPS (torchgen's native_functions.yaml)."""
OWN = {each._opoverload: each._init_fn for each in vars(ops).values() if hasattr(each, "_init_fn")}


def there(value):
    return isinstance(value, torch.Tensor) and value.device.type == "meta"


class _Refusing(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in OWN:
            # What runs inside an operator of ours counts too
            with self:
                return OWN[func](*args, **kwargs)
        if there(args[0] if args else None) and str(kwargs.get("device")) == "cpu":
            # Tensors of the meta device have no values that the host could read
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        output = func(*args, **kwargs)
        used = [each for each in tree_leaves((args, kwargs, output)) if there(each)]
        if used and func.overloadpacket.__name__ in LACKING:
            raise NotImplementedError(f"MPS has no {func}")
        for each in used:
            if each.dtype in LACKING_DTYPES:
                raise TypeError(f"MPS has no {each.dtype}, which {func} used")
        return output


@contextmanager
def pretended_mac(monkeypatch):
    """Yields a device without values that refuses operators and dtypes that MPS lacks."""
    # The network would lose its values for other tests
    load_style_classifier.cache_clear()
    with monkeypatch.context() as patch, _Refusing():
        patch.setattr(torch_settings, "LIMITED", ("meta",))
        patch.setattr(native, "has_kernel", lambda name, device_type: device_type == "cpu")
        yield torch.device("meta")
    load_style_classifier.cache_clear()
