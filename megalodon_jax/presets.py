"""Sizes of the models of the CUDA release, and of the paper's 7B."""

from megalodon_jax.config import MegalodonConfig

_LARGE = {"model_dim": 4096, "num_layers": 32, "num_heads": 4, "z_dim": 1024, "value_dim": 8192, "norm_num_groups": 64}
_MIDDLE = {"model_dim": 2048, "num_layers": 24, "num_heads": 2, "z_dim": 512, "value_dim": 4096, "norm_num_groups": 64}
ORIGINAL = {
    "mega200m": {},
    "mega1_3b": {**_MIDDLE, "ffn_hidden_dim": 4864},
    "mega1_3b_pg19": {**_MIDDLE, "ffn_hidden_dim": 3584, "swiglu": True, "scale_emb": True, "share_emb": True},
    "mega7_1b": {**_LARGE, "ffn_hidden_dim": 11264},
    "mega7_3b": {**_LARGE, "ffn_hidden_dim": 8192, "swiglu": True},
    "paper_7b": {**_LARGE, "ffn_hidden_dim": 8192, "swiglu": True, "chunk_size": 4096, "rope_base": 100000.0},
}


def original_config(name: str, vocab_size: int = 32000, **changes) -> MegalodonConfig:
    """A config of the original variant by its name in the release (or "paper_7b"), with `changes` of other fields.

    Raises:
        ValueError: unknown name, or a change that `MegalodonConfig` rejects.
    """
    if name not in ORIGINAL:
        raise ValueError(f"unknown model {name!r}; the names are {', '.join(ORIGINAL)}")
    release = {"variant": "original", "pad_token_id": None, "init_mode": "kaiming"}
    return MegalodonConfig(**{"vocab_size": vocab_size, **release, **ORIGINAL[name], **changes})
