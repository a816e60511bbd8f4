"""TimestepNorm: `api` holds the public function."""
