"""Tiles of kernels searched for, and kept where they are faster; run `python -m bench tune --help`.

search       from the heuristic's tiles on to better ones
measured     what tiles cost on the GPU at hand: has not run on one yet
modelled     what they cost by the static figures of the compiled kernel, without a GPU
command      the command, and the file of the tuning cache
"""
