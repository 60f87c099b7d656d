"""`dfq quantize`: a 16-bit checkpoint in, packed integers out."""
