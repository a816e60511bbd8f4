"""fused_linear: a linear layer with an activation in front and a residual behind, in one kernel."""
