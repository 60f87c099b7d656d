"""Images in prompts: processors, the vision part of a checkpoint, and what a prompt with images becomes."""
