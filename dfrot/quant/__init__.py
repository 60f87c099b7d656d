"""Schemes, integer grids, quantization algorithms and the modules that run the result."""
