"""Images in prompts: processors, the vision part of a checkpoint, and prompts with images as token ids."""
