"""The ops as they are usually written in JAX, in plain XLA: what the kernels and the reference are measured beside.

ema          an FFT convolution, a sequential scan, an associative scan
norm         cumulative sums
attention    dense scores under a mask, `jax.nn.dot_product_attention` over tiles of the values
"""
