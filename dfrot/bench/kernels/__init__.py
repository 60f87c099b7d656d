"""Speed of each kernel at each shape, gated by its reference, beside its peers and the machine's roofline."""
