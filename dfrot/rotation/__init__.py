"""Rotations: Hadamard constructions, fusing into weights, refinement (DFRot), the online part."""
