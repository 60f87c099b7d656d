"""`dfq outliers`, its comparison, fixes and recipes."""
