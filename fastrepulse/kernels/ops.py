"""The public pairwise operations.

Each one is a registered PyTorch operator, so `torch.compile` does not break the graph at it. The
gradient of the similarity is computed from the force. `dispatch` chooses the backend: the native
library, Triton or plain PyTorch.
"""

from typing import Literal

import torch
from torch import Tensor

from fastrepulse.checks import check_choice, check_positive
from fastrepulse.kernels import dispatch
from fastrepulse.kernels.reference import bandwidth_from_median, median_rank


def rbf_repulsion(
    x: Tensor,  # [N, d]
    bandwidth: float | Tensor | Literal["median"],
    y: Tensor | None = None,  # [M, d]
    weights: Tensor | None = None,  # [M]
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes the repulsive force of an RBF kernel and each particle's summed similarity.

    With k_ij = exp(-||x_i - y_j||^2 / h), the similarity is S_i = sum_j w_j k_ij and the force
    F_i = -grad_{x_i} S_i = (2 / h) sum_j w_j k_ij (x_i - y_j), which points away from the others
    (Liu & Wang 2016, arXiv:1608.04471; Pondaven 2023). Memory is linear in N and M. The similarity
    is differentiable in `x`, `y` and `weights`; the force is not.

    Args:
        x: Embeddings [N, d], float64, float32, float16 or bfloat16. Half precision is accumulated
            in float32. float64 runs in the CPU kernels or in PyTorch.
        bandwidth: h > 0 in units of squared distance: a number, a scalar tensor (its value is not
            checked), or "median" for `median_bandwidth(x)`.
        y: Embeddings to repel from, [M, d], with the dtype and device of `x`. The default is `x`
            itself; each particle then adds its own weight w_i to S_i.
        weights: w [M]; ones by default.
        backend: "native", "triton" or "reference". The default is the fastest available one.

    Returns:
        The force [N, d] and the similarity [N], in the dtype of `x`.

    Raises:
        TypeError: If `x`, `y` or `weights` is not a floating-point tensor.
        ValueError: If a shape does not fit, `bandwidth` is not a positive number, or the backend
            is unknown or unavailable.
    """
    _check_embeddings("x", x)
    accumulator = _accumulator(x)
    if y is not None:
        _check_embeddings("y", y)
        if y.shape[1] != x.shape[1] or y.dtype != x.dtype or y.device != x.device:
            raise ValueError(
                f"y must be [M, {x.shape[1]}] of {x.dtype} on {x.device}, "
                f"got {list(y.shape)} of {y.dtype} on {y.device}"
            )
    if weights is not None:
        count = len(x if y is None else y)
        if not isinstance(weights, Tensor) or not weights.is_floating_point():
            raise TypeError(f"weights must be a floating-point tensor, got {_type_name(weights)}")
        if weights.shape != (count,):
            raise ValueError(f"weights must be [{count}], got {list(weights.shape)}")
        weights = weights.to(x.device, accumulator)
    if isinstance(bandwidth, str) and bandwidth == "median" and y is None and weights is None:
        return median_rbf_repulsion(x, backend=backend)[:2]
    h = _bandwidth_tensor(x, bandwidth, backend)
    force, similarity = _rbf_repulsion(x, h, y, weights, _checked_backend(backend))
    return force.to(x.dtype), similarity.to(x.dtype)


def median_sq_distance(
    x: Tensor,  # [N, d]
    quantile: float = 0.5,
    *,
    backend: str | None = None,
) -> Tensor:
    """Computes a quantile of ||x_i - x_j||^2 over the pairs i < j, by default the lower median.

    The result is exactly one of the distances, the one of rank floor(quantile * (pairs - 1)); for
    the median this is the rank that `torch.median` uses. No N x N matrix is stored.

    Args:
        x: Embeddings [N, d], N >= 2.
        quantile: In [0, 1].
        backend: As for `rbf_repulsion`.

    Returns:
        A scalar tensor.

    Raises:
        TypeError: If `x` is not a floating-point tensor.
        ValueError: If `x` is not [N, d] with N >= 2 or an argument is out of range.
    """
    _check_pairs(x)
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must be in [0, 1], got {quantile}")
    rank = median_rank(len(x), quantile)
    return _median_sq_distance(x.detach(), rank, _checked_backend(backend)).to(x.dtype)


def median_bandwidth(x: Tensor, *, backend: str | None = None) -> Tensor:
    """Computes the bandwidth h = median ||x_i - x_j||^2 / log N of the median heuristic.

    The divisor is log N (Liu & Wang 2016): with log(N - 1), two particles would feel no force. When
    particles nearly coincide, the force grows like 1 / sqrt(h). Therefore h is at least 1e-4 of the
    variance, the mean ||x_i - mean x||^2, and 1 if all particles are equal.

    Args:
        x: Embeddings [N, d], N >= 2.
        backend: As for `rbf_repulsion`.

    Returns:
        A scalar tensor of the accumulator's dtype: float64 for float64, else float32.
    """
    _check_pairs(x)
    median = _median_sq_distance(x.detach(), median_rank(len(x)), _checked_backend(backend))
    return bandwidth_from_median(x.detach(), median)


def median_rbf_repulsion(
    x: Tensor,  # [N, d]
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `rbf_repulsion` at the `median_bandwidth`.

    On a GPU, N <= 128 takes one kernel launch.

    Args:
        x: Embeddings [N, d], N >= 2.
        backend: As for `rbf_repulsion`.

    Returns:
        The force [N, d] and the similarity [N], in the dtype of `x`, and the bandwidth, a scalar
        tensor of the accumulator's dtype. The similarity is differentiable; its gradient treats the
        bandwidth as a constant.

    Raises:
        TypeError: If `x` is not a floating-point tensor.
        ValueError: If `x` is not [N, d] with N >= 2, or the backend is unavailable.
    """
    _check_pairs(x)
    force, similarity, bandwidth = _median_rbf_repulsion(x, _checked_backend(backend))
    return force.to(x.dtype), similarity.to(x.dtype), bandwidth


def _bandwidth_tensor(
    x: Tensor, bandwidth: float | Tensor | Literal["median"], backend: str | None
) -> Tensor:
    if isinstance(bandwidth, str):
        if bandwidth != "median":
            raise ValueError(f"bandwidth must be a positive number or 'median', got {bandwidth!r}")
        return median_bandwidth(x, backend=backend)
    if isinstance(bandwidth, Tensor):
        if bandwidth.numel() != 1:
            raise ValueError(f"bandwidth must be a scalar, got {list(bandwidth.shape)}")
        return bandwidth.detach().to(x.device, _accumulator(x)).reshape(())
    check_positive("bandwidth", bandwidth, "'median' or ")
    return torch.full((), float(bandwidth), dtype=_accumulator(x), device=x.device)


def _checked_backend(backend: str | None) -> str:
    if backend is None:
        return "auto"
    check_choice("backend", backend, dispatch.BACKENDS)
    return backend


def _check_pairs(x: Tensor) -> None:
    _check_embeddings("x", x)
    if len(x) < 2:
        raise ValueError(f"a median distance needs at least 2 embeddings, got {len(x)}")


def _check_embeddings(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(
            f"{name} must be a floating-point tensor of embeddings, got {_type_name(x)}"
        )
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} must be embeddings [N, d], N, d >= 1, got {tuple(x.shape)}")


def _type_name(x: object) -> str:
    return str(x.dtype) if isinstance(x, Tensor) else type(x).__name__


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.custom_op("fastrepulse::rbf_repulsion", mutates_args=())
def _rbf_repulsion(
    x: Tensor, bandwidth: Tensor, y: Tensor | None, weights: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    return dispatch.rbf_repulsion(dispatch.choose(x, backend), x, bandwidth, y, weights)


@_rbf_repulsion.register_fake
def _(x, bandwidth, y, weights, backend):  # type: ignore[no-untyped-def]
    dtype = _accumulator(x)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:1], dtype=dtype)


def _save_for_backward(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, bandwidth, y, weights, ctx.backend = inputs
    ctx.save_for_backward(x, bandwidth, y, weights, output[0])
    ctx.set_materialize_grads(False)


def _similarity_backward(ctx, grad_force, grad):  # type: ignore[no-untyped-def]
    """Returns the gradients of a loss L given g_i = dL / dS_i.

    dL / dx_i is -g_i F_i. One more call of the operator, on y_j against the x_i with weights g_i,
    gives the other two: dL / dy_j is minus w_j times its force, and dL / dw_j is its similarity.
    """
    if grad_force is not None:
        raise NotImplementedError(
            "the force of rbf_repulsion has no gradient; detach it, or differentiate the similarity"
        )
    if grad is None:
        return None, None, None, None, None
    x, bandwidth, y, weights, force = ctx.saved_tensors
    grad_x = -grad[:, None] * force
    grad_y = grad_weights = None
    columns = x if y is None else y
    if y is None or any(ctx.needs_input_grad[2:4]):
        others = None if y is None else x
        pull, grad_weights = _rbf_repulsion(columns, bandwidth, others, grad, ctx.backend)
        grad_y = -pull if weights is None else -weights[:, None] * pull
        if y is None:
            grad_x, grad_y = grad_x + grad_y, None
    return (
        grad_x.to(x.dtype),
        None,
        None if grad_y is None else grad_y.to(x.dtype),
        None if weights is None else grad_weights,
        None,
    )


_rbf_repulsion.register_autograd(_similarity_backward, setup_context=_save_for_backward)


@torch.library.custom_op("fastrepulse::median_rbf_repulsion", mutates_args=())
def _median_rbf_repulsion(x: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return dispatch.median_rbf_repulsion(backend, x)


@_median_rbf_repulsion.register_fake
def _(x, backend):  # type: ignore[no-untyped-def]
    dtype = _accumulator(x)
    return tuple(x.new_empty(shape, dtype=dtype) for shape in (x.shape, x.shape[:1], ()))


def _save_median(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, ctx.backend = inputs
    force, _, bandwidth = output
    ctx.save_for_backward(x, bandwidth, None, None, force)
    ctx.set_materialize_grads(False)


def _median_backward(ctx, grad_force, grad, grad_bandwidth):  # type: ignore[no-untyped-def]
    if grad_bandwidth is not None:
        raise NotImplementedError("the bandwidth of median_rbf_repulsion has no gradient")
    return _similarity_backward(ctx, grad_force, grad)[0], None


_median_rbf_repulsion.register_autograd(_median_backward, setup_context=_save_median)


@torch.library.custom_op("fastrepulse::median_sq_distance", mutates_args=())
def _median_sq_distance(x: Tensor, rank: int, backend: str) -> Tensor:
    return dispatch.median_sq_distance(dispatch.choose(x, backend), x, rank)


@_median_sq_distance.register_fake
def _(x, rank, backend):  # type: ignore[no-untyped-def]
    return x.new_empty((), dtype=_accumulator(x))
