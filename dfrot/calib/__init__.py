"""Calibration: datasets as token windows, and the statistics that quantization needs."""
