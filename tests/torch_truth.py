"""Outputs and gradients of a spec from the PyTorch oracle in float64, by the names and in the convention of parity."""

import numpy as np

from bench.ops import Spec
from pallas_kernels.chunked_attention.specs import Spec as AttentionSpec
from pallas_kernels.complex_ema.specs import Spec as EmaSpec
from pallas_kernels.timestep_norm.specs import Spec as NormSpec


def torch_truth(spec: Spec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Nothing where torch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return {}
    return {NormSpec: _norm, EmaSpec: _ema, AttentionSpec: _attention}[type(spec)](spec, arrays)


def _norm(spec, arrays) -> dict[str, np.ndarray]:
    import torch

    from reference import oracle_torch

    names = [name for name in ("x", "weight", "bias", "mean", "var") if name in arrays]
    moving = {name: torch.tensor(arrays[name].astype(np.float64), requires_grad=True) for name in names}
    fixed = {name: torch.tensor(arrays[name]) for name in ("mask", "segment_ids") if name in arrays}
    state = (torch.tensor(arrays["count"]), moving["mean"], moving["var"]) if spec.state else None
    y, (count, mean, var) = oracle_torch.timestep_norm(
        moving["x"], moving.get("weight"), moving.get("bias"), num_groups=spec.groups, state=state,
        statistics=spec.statistics, **fixed,
    )  # fmt: skip
    cotangents = (torch.tensor(arrays[name].astype(np.float64)) for name in ("dy", "dmean", "dvar"))
    sum((value * cotangent).sum() for value, cotangent in zip((y, mean, var), cotangents, strict=True)).backward()
    values = {"y": y, "state count": count, "state mean": mean, "state var": var}
    gradients = {f"d{name}": tensor.grad for name, tensor in moving.items()}
    return {name: tensor.detach().numpy() for name, tensor in (values | gradients).items()}


def _ema(spec, arrays) -> dict[str, np.ndarray]:
    import torch

    from reference import oracle_torch

    def exact(name):
        array = arrays[name]
        return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)

    names = [name for name in ("x", "p", "q", "gamma", "omega", "h0") if name in arrays]
    moving = {name: torch.tensor(exact(name), requires_grad=True) for name in names}
    fixed = {name: torch.tensor(arrays[name]) for name in ("mask", "segment_ids") if name in arrays}
    y, h = oracle_torch.complex_ema(**moving, **fixed)
    total = (y * torch.tensor(exact("dy"))).sum()
    if spec.returned:  # jax's cotangents of complex numbers are the conjugates
        total = total + (h * torch.tensor(exact("dh"))).sum().real
    total.backward()
    outputs = {"y": y, "state": h} if spec.returned else {"y": y}
    gradients = {f"d{name}": tensor.grad.conj() for name, tensor in moving.items()}
    return {name: tensor.detach().resolve_conj().numpy() for name, tensor in (outputs | gradients).items()}


def _attention(spec, arrays) -> dict[str, np.ndarray]:
    import torch

    from reference import oracle_torch

    moving = {name: torch.tensor(arrays[name].astype(np.float64), requires_grad=True) for name in ("q", "k", "v")}
    fixed = {name: torch.tensor(arrays[name]) for name in ("mask", "segment_ids") if name in arrays}
    o = oracle_torch.chunked_attention(**moving, chunk_size=spec.chunk, **fixed)
    (o * torch.tensor(arrays["do"].astype(np.float64))).sum().backward()
    return {"o": o.detach().numpy()} | {f"d{name}": tensor.grad.numpy() for name, tensor in moving.items()}
