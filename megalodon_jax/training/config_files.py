"""Configs in YAML: files of the user, those that come with the package, and `key=value` words on top of either."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from megalodon_jax.training.config import TrainingConfig

_SHIPPED = resources.files("megalodon_jax.training") / "configs"
_SUFFIX = ".yaml"
_MERGE = "tag:yaml.org,2002:merge"  # of the key "<<"


def load(source: str, overrides: Sequence[str] = ()) -> TrainingConfig:
    """The config in a file, or shipped under a bare name, with `key=value` overrides.

    Args:
        source: a path, or one of `shipped()`.
        overrides: "steps=200", "data.path=text.txt", "megalodon.num_layers=2"; values as YAML reads them.

    Raises:
        ValueError: no YAML, an unknown key, a value that is not allowed, or an override without "=".
        OSError: the file cannot be read.
    """
    values = _parse(_text(source), source)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"{override!r} is no override; give key=value, such as steps=200 or data.path=text.txt")
        _put(values, key, _parse_value(key, text))
    return TrainingConfig.from_dict(values)


def shipped() -> list[str]:
    """Names of the configs that come with the package."""
    return sorted(file.name.removesuffix(_SUFFIX) for file in _SHIPPED.iterdir() if file.name.endswith(_SUFFIX))


def to_yaml(config: TrainingConfig) -> str:
    """The whole config as YAML."""
    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def _text(source: str) -> str:
    path = Path(source)
    if source in shipped() and not path.is_file():
        return (_SHIPPED / (source + _SUFFIX)).read_text(encoding="utf-8")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"config {source} is no text: {error}; give a YAML file") from error
    except OSError as error:
        names = ", ".join(shipped())
        raise OSError(
            f"config {source} cannot be read ({error.strerror}); give a YAML file, or one of {names}"
        ) from error


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{source} must hold a mapping of keys, got {type(values).__name__}")
    return values


def _parse_value(key: str, text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"the value of {key} is not valid YAML: {text!r}") from error


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for name in sections:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ValueError(f"unknown key {key}: {name} holds no keys, its value is {inner!r}")
        values = inner
    values[last] = value


class _Loader(yaml.SafeLoader):
    """Plain values alone; a key that is in a mapping twice is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)
