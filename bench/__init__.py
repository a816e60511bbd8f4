"""Benchmarks of the ops and the model against plain JAX formulations; run `python -m bench --help`.

Every speed figure is a ratio of programs measured side by side in one process, and is printed only after the outputs
and gradients of those programs have been compared with a float64 oracle in the same run. Targets are reported as met or
not met, never asserted.
"""
