"""What the Triton kernels of the ops (ops/<family>/triton.py) share: launching, rows, packed weights.

Importing these modules imports Triton; cuda.py does so at the first CUDA call.

The functions that launch kernels work on tensors of any device, on arguments that are checked already: under Triton's
interpreter (TRITON_INTERPRET=1) the same code runs on CPU tensors, which is how a machine without a GPU tests it.
"""
