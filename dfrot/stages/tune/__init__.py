"""`dfq tune`: scales and norm gains of a packed checkpoint, fitted to the 16-bit model."""
