"""dfq: rotate, calibrate, quantize and evaluate LLM checkpoints at 4 bits (DFRot, arXiv 2412.00648).

Importing this package touches neither CUDA nor transformers; submodules are imported where they are used.
"""

__version__ = "0.1.0"
