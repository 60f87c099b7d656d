"""The refinement of R1 against the straightforward method, on generated activations."""
