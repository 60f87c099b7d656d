"""Scripts that stand alone, one per engine: each runs in an environment of the engine's own, where dfq is not
installed."""
