"""How models train: beside PyTorch from the same weights, and beside each other on the same bytes."""
