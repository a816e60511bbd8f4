"""Training from a config, as `python -m megalodon_jax train` does it. Needs the extra `train`.

    config = load("megalodon_multichunk_512", ["steps=2000", "optimizer.learning_rate=1e-3"])
    train(config, resume="auto")

with `load` of `megalodon_jax.training.config_files` and `train` of `megalodon_jax.training.loop`.
"""
