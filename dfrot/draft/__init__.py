"""Drafts: small models that guess what a quantized target will say, and decoding that checks every guess.

Slots and positions (the contract of this package): slot p takes the target's embedding of token p, may see target
features of positions q < p only, and predicts the feature of position p, from which the head predicts token p + 1.
Source of the draft: DREAM, arXiv 2505.19201; of the dynamic tree: EAGLE-2, arXiv 2406.16858; of the baseline and
of training-time test: EAGLE-3, arXiv 2503.01840.
"""
