"""TimestepNorm: `api` holds the public function, `math` the arithmetic of the kernels.

Read in this order: math, triton (the kernels), launch, vjp (what is saved; which platform runs what), tiles.
"""
