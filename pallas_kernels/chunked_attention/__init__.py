"""Chunked attention: `api` holds the public function."""
