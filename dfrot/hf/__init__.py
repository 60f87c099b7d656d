"""The only door to transformers: building modules, running blocks, tokenizers, the quantizer plug-in."""
