"""`dfq eval sensitivity`: which input, weight or cache costs what when it alone is rounded."""
