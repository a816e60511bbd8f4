"""The two implementations that every op's Triton kernels give: compiled, and run by Pallas' interpreter."""

from collections.abc import Callable

from pallas_kernels._architecture import Architecture, architecture
from pallas_kernels._backends import triton
from pallas_kernels._dispatch import Implementation
from pallas_kernels._settings import Settings
from pallas_kernels._tiles import Launch


def kernel_implementations(
    run: Callable,
    launches: Callable[..., tuple[Launch, ...]],
    refuse: Callable[..., str | None],
    token_axis: int | None = 1,
) -> tuple[Implementation, Implementation]:
    """("triton", "triton_interpret") of an op.

    Args:
        run: `run(plan, *args, **kwargs)`.
        launches: `launches(gpu, *args, **kwargs)`, the kernels with their tiles for an architecture.
        refuse: `refuse(*args, **kwargs)`, why the kernels cannot take these arguments, or None.
        token_axis: of the first argument. One token is elementwise work, which XLA fuses with what stands around it:
            there the kernels do not pay. None: they always do.
    """

    def refuse_compiled(settings: Settings, x, *args, **kwargs) -> str | None:
        return triton.refuse(settings, x) or refuse(x, *args, **kwargs)

    def refuse_interpreted(settings: Settings, x, *args, **kwargs) -> str | None:
        return triton.refuse_interpreted(settings, x) or refuse(x, *args, **kwargs)

    def launched(settings: Settings, *args, **kwargs) -> tuple[Launch, ...]:
        gpu = architecture(settings)
        return launches(gpu if isinstance(gpu, Architecture) else Architecture.of("sm_90"), *args, **kwargs)

    def pays(x, *args, **kwargs) -> bool:
        return token_axis is None or x.shape[token_axis] > 1

    return (
        Implementation("triton", run, refuse_compiled, launched, pays),
        Implementation("triton_interpret", run, refuse_interpreted, launched, pays),
    )
