"""Perplexity, divergence and agreement, with the protocol written next to each number."""
