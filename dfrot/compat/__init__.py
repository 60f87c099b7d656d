"""Everything that relies on the insides of transformers. No other package imports `transformers.<submodule>`.

transformers promises nothing about what lies in its modules, so every assumption stands here once and has a test in
tests/compat, which `make compat` runs under every supported version. The functions import transformers when they are
called: importing this package stays cheap.
"""
