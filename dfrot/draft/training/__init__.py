"""Training drafts: data, features of the target, losses, the loop."""
