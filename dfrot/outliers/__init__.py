"""Outliers of activations: finding them, explaining where they come from, removing them (arXiv 2505.21670)."""
