"""Language models built from their architecture's description in plain torch, without transformers.

transformers takes seconds to import and builds far more than plain decoding needs. Where the description and
config.json say everything, `build` makes a model with the names and the arithmetic of transformers' own, on which the
cache, the linears and the native decoder of dfq work alike. Where they do not (`refuses`), transformers builds the
model.
"""
