"""Calibration: statistics of activations that quantization needs, collected block by block."""
