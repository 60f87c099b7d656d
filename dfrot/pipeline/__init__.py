"""The stages behind the commands: rotate, calibrate, quantize, eval. One file each."""
