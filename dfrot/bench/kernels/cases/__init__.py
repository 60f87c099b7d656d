"""The cases of `dfq bench kernels`, one module per family of operators."""
