"""Drafts: small models that propose tokens for a quantized target, their training, and their files.

Positions: slot p of a draft takes the target's embedding of token p, may see target features of positions below p
only, and predicts the feature of position p, from which the head predicts token p + 1.
Sources: the draft DREAM, arXiv 2505.19201; dynamic trees EAGLE-2, arXiv 2406.16858; the baseline and training-time
test EAGLE-3, arXiv 2503.01840.
"""
