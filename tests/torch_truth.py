"""Outputs and gradients of a spec from the PyTorch oracle in float64, by the names and in the convention of parity."""

import numpy as np

from bench import ops
from bench.ops import Spec
from pallas_kernels.chunked_attention.specs import Spec as AttentionSpec
from pallas_kernels.complex_ema.specs import Spec as EmaSpec
from pallas_kernels.feature_norm.specs import Spec as FeatureSpec
from pallas_kernels.fused_linear.specs import Spec as LinearSpec
from pallas_kernels.linear_cross_entropy.specs import Spec as CrossEntropySpec
from pallas_kernels.normalized_rotary.specs import Spec as RotarySpec
from pallas_kernels.timestep_norm.specs import Spec as NormSpec


def torch_truth(spec: Spec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Nothing where torch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return {}
    of_op = {
        NormSpec: _norm, EmaSpec: _ema, AttentionSpec: _attention, RotarySpec: _rotary, LinearSpec: _linear,
        FeatureSpec: _features, CrossEntropySpec: _cross_entropy,
    }  # fmt: skip
    return of_op[type(spec)](spec, arrays)


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

    given = {name: arrays[name] for name in ops.attention.MOVING if name in arrays}
    leaves = {name: torch.tensor(array.astype(np.float64), requires_grad=True) for name, array in given.items()}
    fixed = {name: torch.tensor(arrays[name]) for name in ("mask", "segment_ids") if name in arrays}
    moving = {name: leaf for name, leaf in leaves.items() if "gate" not in name and "bias" not in name}
    silu = torch.nn.functional.silu
    if spec.activated or spec.gated:
        moving["v"] = silu(moving["v"] + leaves["v_bias"])
    if spec.cached:
        o = torch.cat([_continued(spec, row, arrays["cached_length"], moving, fixed) for row in range(spec.batch)])
    else:
        o = oracle_torch.chunked_attention(**moving, chunk_size=spec.chunk, **fixed)
    if spec.gated:
        o = o * silu(leaves["gate"] + leaves["gate_bias"])
    (o * torch.tensor(arrays["do"].astype(np.float64))).sum().backward()
    return {"o": o.detach().numpy()} | {f"d{name}": tensor.grad.numpy() for name, tensor in leaves.items()}


def _continued(spec, row: int, cached_length, moving, fixed):
    """o [1, L, H, V] of one row: the op on the cached keys and what follows them, as one longer sequence."""
    import torch

    from reference import oracle_torch

    n, own = int(cached_length[row]), slice(row, row + 1)
    valid = fixed["mask"][row] if spec.mask else torch.ones(spec.length, dtype=torch.bool)
    ids = fixed["segment_ids"][row] if spec.segments else torch.ones(spec.length, dtype=torch.int32)
    first = int((ids != ids[0]).nonzero()[0]) if (ids != ids[0]).any() else spec.length
    valid = valid & (ids != 0)
    ids = torch.cat([torch.full((n + first,), 9), ids[first:]])  # an incoming chunk goes on in padding too
    cached = {"q": torch.zeros(1, n, spec.heads, spec.depth), "k": moving["cached_k"], "v": moving["cached_v"]}
    longer = {
        name: torch.cat([cached[name][own, :n] if name != "q" else cached["q"], moving[name][own]], 1)
        for name in cached
    }
    mask = torch.cat([torch.ones(n, dtype=torch.bool), valid])[None]
    return oracle_torch.chunked_attention(**longer, chunk_size=spec.chunk, mask=mask, segment_ids=ids[None])[:, n:]


def _rotary(spec, arrays) -> dict[str, np.ndarray]:
    import torch

    from reference.oracle_torch_ops import rotary_table, rotate

    names = [name for name in ("z", "scale", "shift", "bias") if name in arrays]
    moving = {name: torch.tensor(arrays[name].astype(np.float64), requires_grad=True) for name in names}
    z, positions = moving["z"] + moving.get("bias", 0.0), torch.tensor(np.atleast_2d(arrays["positions"]))
    n = z / torch.sqrt(z.square().mean(-1, keepdim=True) + 1e-5)
    table = rotary_table(positions, spec.depth, 10000.0, torch.float64)
    order = np.arange(spec.depth)  # the oracle pairs the halves
    if spec.interleaved:
        order = np.concatenate([order[0::2], order[1::2]])
    factors = (moving["scale"] + spec.offset) * spec.factor
    turned = (rotate((n * factors[i] + moving["shift"][i])[..., order], table) for i in range(2))
    q, k = (part[..., np.argsort(order)] for part in turned)
    total = sum((part * torch.tensor(arrays[name].astype(np.float64))).sum() for part, name in ((q, "dq"), (k, "dk")))
    torch.as_tensor(total).backward()
    values = {"q": q, "k": k} | {f"d{name}": tensor.grad for name, tensor in moving.items()}
    return {name: tensor.detach().numpy() for name, tensor in values.items()}


def _linear(spec, arrays) -> dict[str, np.ndarray]:
    import torch

    given, silu, linear = ops.linear.moving(arrays), torch.nn.functional.silu, torch.nn.functional.linear
    moving = {name: torch.tensor(array.astype(np.float64), requires_grad=True) for name, array in given.items()}
    a = moving["x"] + moving.get("x_bias", 0.0)
    a = silu(a) if spec.activation == "silu" else a
    a = a * silu(moving["gate"] + moving.get("gate_bias", 0.0)) if spec.gate else a
    ys = [
        linear(a, moving[f"weight_{n}"], moving.get(f"bias_{n}")) + moving.get(f"residual_{n}", 0.0)
        for n in range(len(spec.layers))
    ]
    total = sum((y * torch.tensor(arrays[f"dy_{n}"].astype(np.float64))).sum() for n, y in enumerate(ys))
    torch.as_tensor(total).backward()
    values = {f"y_{n}": y for n, y in enumerate(ys)} | {f"d{name}": tensor.grad for name, tensor in moving.items()}
    return {name: tensor.detach().numpy() for name, tensor in values.items()}


def _features(spec, arrays) -> dict[str, np.ndarray]:
    import torch

    moving = {
        name: torch.tensor(arrays[name].astype(np.float64), requires_grad=True)
        for name in ops.features.MOVING
        if name in arrays
    }
    normalize = torch.nn.functional.layer_norm if spec.centred else torch.nn.functional.rms_norm
    gain = moving.get("weight", torch.tensor(1.0 - spec.minus_one)) + float(spec.minus_one)
    y = normalize(moving["x"], (spec.features,), eps=1e-5) * gain + moving.get("bias", 0.0)
    (y * torch.tensor(arrays["dy"].astype(np.float64))).sum().backward()
    values = {"y": y} | {f"d{name}": tensor.grad for name, tensor in moving.items()}
    return {name: tensor.detach().numpy() for name, tensor in values.items()}


def _cross_entropy(spec, arrays) -> dict[str, np.ndarray]:
    import torch

    hidden, weight, factors = (torch.tensor(arrays[n].astype(np.float64)) for n in ("hidden", "weight", "factors"))
    moving = hidden.requires_grad_(), weight.requires_grad_()
    targets = torch.tensor(arrays["targets"].astype(np.int64))
    losses = factors * torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    losses.sum().backward()
    dhidden, dweight = (array.grad.numpy() for array in moving)
    return {"losses": losses.detach().numpy(), "dhidden": dhidden, "dweight": dweight + arrays.get("so_far", 0.0)}
