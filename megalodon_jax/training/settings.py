"""Dataclasses from the plain values of YAML: every key known, every value of its field's type and in its range.

A field's annotation says what it takes: bool, int, float, str, `Literal`, a tuple, `None`, another dataclass, or a
number with its range, `Annotated[int, Range(1)]`. What is refused is named by its dotted key.
"""

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Section = TypeVar("Section")


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`: without `least` where it is `excluded`, without `most` if they are `below` it."""

    least: int | float
    most: int | float = math.inf
    excluded: bool = False
    below: bool = False

    def __contains__(self, value: int | float) -> bool:
        above = self.least < value if self.excluded else self.least <= value
        return above and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        least = f"{'above' if self.excluded else 'at least'} {self.least:g}"
        return least if self.most == math.inf else f"{least} and {'below' if self.below else 'at most'} {self.most:g}"


Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, excluded=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


def read_section(kind: type[Section], values: Any, prefix: str = "") -> Section:
    """The dataclass `kind` with these values by field name; fields left out take their defaults.

    Args:
        kind: a dataclass.
        values: a mapping.
        prefix: of its keys in messages, "data." for example.

    Raises:
        ValueError: not a mapping, an unknown key, a value that the field does not take, or whatever `kind` refuses.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.removesuffix('.') or 'a config'} must be a mapping of keys, got {values!r}")
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind) if field.init]  # pyright: ignore[reportArgumentType]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            guess = f" (did you mean {prefix}{near[0]}?)" if near else ""
            raise ValueError(f"unknown key {prefix}{key}{guess}; the keys are {', '.join(names)}")
    converted = {key: convert(prefix + key, value, hints[key]) for key, value in values.items()}
    try:
        return kind(**converted)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def convert(name: str, value: Any, kind: Any) -> Any:
    """A plain value as what the annotation `kind` says.

    Raises:
        ValueError: it is not that; the message names the key, the value and what is allowed.
    """
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return read_section(kind, value, name + ".")
    try:
        return _convert(value, kind)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be {describe(kind)}, got {value!r}") from error


def describe(kind: Any) -> str:
    """What values an annotation allows, in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{describe(arguments[0])} {arguments[1]}"
    if origin is Literal:
        return " or ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(one) for one in arguments)
    if origin is tuple:
        return f"a list of {len(arguments)} values, each {describe(arguments[0])}"
    names = {type(None): "null", bool: "true or false", int: "an integer", float: "a finite number", str: "text"}
    return names.get(kind, "a mapping of keys" if (origin or kind) is dict else str(kind))


def _convert(value: Any, kind: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        number = _convert(value, arguments[0])
        return number if number in arguments[1] else _refuse()
    if origin is Literal:
        return value if value in arguments and not isinstance(value, bool) else _refuse()
    if origin in (Union, types.UnionType):
        return _first(value, arguments)
    if origin is tuple:
        parts = value if isinstance(value, list | tuple) and len(value) == len(arguments) else _refuse()
        return tuple(_convert(part, one) for part, one in zip(parts, arguments, strict=True))
    if kind is float:  # YAML reads 4e-4, without a dot, as text
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else _refuse()
        return number if math.isfinite(number) else _refuse()
    if kind is int or kind is bool:
        return value if type(value) is kind else _refuse()
    if kind is str or (origin or kind) is dict or kind is type(None):
        return value if isinstance(value, origin or kind) else _refuse()
    return value  # `Any`: for the dataclass itself to check


def _first(value: Any, kinds: tuple) -> Any:
    for kind in kinds:
        try:
            return _convert(value, kind)
        except (TypeError, ValueError):
            continue
    return _refuse()


def _refuse() -> Any:
    raise ValueError
