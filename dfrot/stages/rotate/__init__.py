"""`dfq rotate`: the same model in a basis without outliers."""
