"""round_weights: copies of several matrices in another dtype, in one kernel."""
