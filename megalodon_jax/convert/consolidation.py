"""consolidate_config.json, beside the files of the CUDA release: their dtype, and how many they are."""

from pathlib import Path

from megalodon_jax.json_files import read_object

CONSOLIDATION = "consolidate_config.json"
RELEASE_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def release_dtype(path: Path) -> str | None:
    """The dtype of the weights; None if this file is not there.

    Raises:
        ValueError: the file does not say it.
    """
    if not path.is_file():
        return None
    short = read_object(path).get("dtype")
    if not isinstance(short, str) or short not in RELEASE_DTYPES:
        raise ValueError(
            f"dtype of {path} is {short!r}, expected one of {', '.join(RELEASE_DTYPES)}; "
            "correct it, or choose one (--dtype, or param_dtype=)"
        )
    return RELEASE_DTYPES[short]


def shard_count(path: Path) -> int:
    """Into how many files the model is cut.

    Raises:
        ValueError: the file does not say it.
    """
    count = read_object(path).get("model_parallel_size")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= 1024:
        raise ValueError(
            f"{path} does not say into how many files the model is cut: "
            f"model_parallel_size is {count!r}, expected an integer from 1 to 1024"
        )
    return count
