"""What leans on the insides of transformers: everything here has a test per supported version."""
