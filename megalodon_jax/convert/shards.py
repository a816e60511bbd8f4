"""Several safetensors files of one model, and the index that says which tensor is in which."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from megalodon_jax.atomic import write_text
from megalodon_jax.files import Pending, Signature, TensorFile, write
from megalodon_jax.json_files import unique

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
METADATA = {"format": "pt"}  # what transformers asks for


class Shards:
    """Several safetensors files and the index that says which tensor is in which.

    Raises:
        FileNotFoundError: a file of the index is missing.
        ValueError: an index that is none, that names a file elsewhere, or that does not fit what the files hold.
    """

    def __init__(self, index: Path):
        where = _weight_map(index)
        self._files = {name: TensorFile(index.parent / name) for name in sorted(set(where.values()))}
        self._where = where
        for name, file in self._files.items():
            listed = {tensor for tensor, shard in where.items() if shard == name}
            if wrong := sorted(listed ^ file.signatures.keys()):
                raise ValueError(f"{index} does not fit {name}: {', '.join(wrong[:5])} ({len(wrong)} in all)")
        self.signatures: Mapping[str, Signature] = {
            tensor: self._files[shard].signatures[tensor] for tensor, shard in where.items()
        }

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self._files[self._where[name]].read(name)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=unique)["weight_map"]
        if not all(isinstance(name, str) for pair in weight_map.items() for name in pair):
            raise TypeError("weight_map must be names of tensors and files")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of safetensors files: {error}") from error
    for name in set(weight_map.values()):
        if not re.fullmatch(r"[\w.\-]+\.safetensors", name):
            raise ValueError(f"{index} names {name!r}; expected the name of a .safetensors file beside it")
    return weight_map


def write_pretrained(folder: Path, tensors: Mapping[str, Pending], most: int) -> None:
    """Write to a folder: one file, or if there are more than `most` bytes of tensors several and their index."""
    sizes = {name: int(np.prod(tensor.shape)) * tensor.dtype.itemsize for name, tensor in tensors.items()}
    shards: list[dict[str, Pending]] = [{}]
    room = most
    for name, tensor in tensors.items():
        if shards[-1] and sizes[name] > room:
            shards.append({})
            room = most
        shards[-1][name] = tensor
        room -= sizes[name]
    if len(shards) == 1:
        write(folder / WEIGHTS, tensors, METADATA)
        return
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        write(folder / name, shard, METADATA)
    where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
    write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")
