"""shoal: make trained neural networks shallower and really faster, with proof."""
