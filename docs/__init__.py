"""The documents, and `docs.tables`, which makes tables of them from the code. Not part of the distribution."""
