"""Running a checkpoint: loading, packed KV cache, attention, native decoder, block by block."""
