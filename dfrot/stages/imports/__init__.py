"""`dfq import`: a quantized model of another tool in, an ordinary 16-bit checkpoint out."""
