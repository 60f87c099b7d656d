"""Modules that run quantized weights, and learn."""
