"""The architectures of drafts, and what a draft computes while it proposes tokens."""
