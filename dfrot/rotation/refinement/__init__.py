"""DFRot's refinement of R1 by weighted orthogonal Procrustes (arXiv 2412.00648)."""
