"""Speed of the kernels and of whole models on this machine, beside what people would use instead."""
