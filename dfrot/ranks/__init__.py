"""Several processes that share the work of a stage, and end in the bytes of a single one."""
