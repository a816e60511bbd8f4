"""normalized_rotary: queries and keys from their shared projection, in one pass."""
