"""Calls that run whole blocks of a model: a stack of decoder blocks, a pass of a draft.

The exception to the rule that kernels know tensors and never models (dfrot_kernels/__init__.py says why). They are no
operators of torch.ops: they read weights and write caches through addresses, which a schema cannot describe.
"""
