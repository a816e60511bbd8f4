"""The command `convert`, and a model of the release for it to convert."""

from megalodon_jax.cli.main import main

ORIGINAL = {"variant": "original", "swiglu": True, "rescale_nffn": True, "pad_token_id": None, "share_emb": False}


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])
