"""feature_norm: layer norm and RMS norm over the features of a token, in one pass."""
