"""`dfq calibrate`: statistics of a checkpoint's activations on text."""
