"""How weights are rounded: grids, and the algorithms that choose points on them."""
