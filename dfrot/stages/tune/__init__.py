"""`dfq tune`."""
