"""fused_linear: a linear layer with what stands around it, in one kernel each way but for the gradient of the weight."""
