"""One import site per kernel backend."""
