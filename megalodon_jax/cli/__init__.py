"""Command line: `python -m megalodon_jax {train,generate,demo,doctor}`."""
