"""Command line: `python -m megalodon_jax {train,plot,generate,demo,convert,doctor,selftest}`."""
