"""linear_cross_entropy: losses of an output head, and the gradients of their sum, from one set of logits."""
