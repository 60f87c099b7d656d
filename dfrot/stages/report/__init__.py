"""`dfq report`: results of several runs as one table."""
