"""What the stages cost: disk, memory, arithmetic and hours, from a model's config.json alone."""
