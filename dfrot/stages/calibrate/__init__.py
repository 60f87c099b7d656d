"""`dfq calibrate`."""
