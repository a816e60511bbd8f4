"""Arrays and dtypes of PyTorch as NumPy's, bit for bit; torch is not imported before there is a tensor of it."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import torch

_BITS = {"bfloat16": ("int16", jnp.bfloat16)}  # NumPy has no bfloat16 of its own: what torch hands over, what it is


def as_dtype(dtype: Any) -> np.dtype:
    """A dtype of jnp, NumPy or torch.

    Raises:
        ValueError: not a floating dtype of at least 16 bits.
    """
    name = str(dtype).removeprefix("torch.") if type(dtype).__module__ == "torch" else dtype
    try:
        found = jnp.dtype(name)
    except TypeError as error:
        raise ValueError(f"dtype must be a floating dtype of jax or torch, got {dtype!r}") from error
    if found.name not in ("float32", "bfloat16", "float16", "float64"):
        raise ValueError(f"dtype must be float32, bfloat16, float16 or float64, got {found.name}")
    return found


def require_ordinary(name: str, value: Any) -> None:
    """ValueError if a tensor of torch is sparse, or has no memory."""
    if is_torch(value) and (str(value.layout) != "torch.strided" or value.device.type == "meta"):
        raise ValueError(
            f"{name} is no ordinary tensor: {value.layout}, on {value.device.type}; expected a dense one with values"
        )


def require_finite(name: str, value: np.ndarray) -> None:
    """ValueError if there is a NaN or an infinity."""
    if not np.isfinite(value).all():
        bad = int(value.size - np.isfinite(value).sum())
        raise ValueError(f"{name} has {bad} values that are NaN or infinite; the weights are of a run that diverged")


def cast(name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The value in another dtype, itself if it has it.

    Raises:
        ValueError: a number that is too large for that dtype.
    """
    with np.errstate(over="ignore"):
        found = value.astype(dtype, copy=False)
    if found is not value and not np.isfinite(found).all():
        over = int((np.isfinite(value) & ~np.isfinite(found)).sum())
        if over:
            raise ValueError(f"{name} has {over} values that {dtype.name} cannot hold; choose another dtype")
    return found


def is_torch(value: Any) -> bool:
    """Is it a tensor of torch?"""
    return type(value).__module__.startswith("torch")


def as_numpy(value: Any) -> np.ndarray:
    """A torch tensor, or anything array-like, as a NumPy array."""
    if not is_torch(value):
        return np.asarray(value)
    value, name = value.detach().cpu(), str(value.dtype).removeprefix("torch.")
    if name not in _BITS:
        return value.numpy()
    import torch

    bits, dtype = _BITS[name]
    return value.contiguous().view(getattr(torch, bits)).numpy().view(dtype)


def as_torch(array: np.ndarray) -> "torch.Tensor":
    """A tensor with memory of its own."""
    import torch

    if array.dtype.name not in _BITS:
        return torch.from_numpy(np.array(array))
    bits, _ = _BITS[array.dtype.name]
    return torch.from_numpy(np.array(array).view(bits)).view(getattr(torch, array.dtype.name))
