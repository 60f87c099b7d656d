"""The numbers by which the C interface knows the dtypes of tensors."""

from __future__ import annotations

import torch

from dfrot_kernels import abi

DTYPE_CODES = {
    torch.float32: abi.DTYPE.values["DFQ_FLOAT32"],
    torch.bfloat16: abi.DTYPE.values["DFQ_BFLOAT16"],
    torch.float16: abi.DTYPE.values["DFQ_FLOAT16"],
}
