"""The stages `dfq draft train|extract|eval|generate|export`."""
