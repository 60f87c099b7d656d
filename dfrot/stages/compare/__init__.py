"""`dfq compare`: every method on one model, as one table."""
