"""Kernels have a first derivative, in reverse mode; asking for more is an error that says where it is to be had."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import jax


def _message(op: str) -> str:
    return (
        f"{op}: the kernels have reverse-mode first derivatives only; forward mode (jvp, linearize, jacfwd) and second "
        f'derivatives need implementation="xla".'
    )


def first_order_only(op: str, function: Callable) -> Callable:
    """`function`, raising TypeError where it would be differentiated: for the rules of a custom_vjp."""
    return no_derivative(_message(op), function)


def no_derivative(message: str, function: Callable) -> Callable:
    """`function`, raising TypeError with this message where it would be differentiated."""
    guarded = jax.custom_jvp(function)

    @guarded.defjvp
    def refuse(primals, tangents) -> NoReturn:
        raise TypeError(message)

    return guarded


@contextmanager
def explain_forward_mode(op: str) -> Iterator[None]:
    """Turn jax's refusal of forward mode, where it passes through here, into one that names the way out."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" in str(error) and "custom_vjp" in str(error):
            raise TypeError(_message(op)) from error
        raise
