"""Speculative decoding: draft trees, verification, acceptance, and the choice of shapes by measured costs."""
