"""ComplexEMA: `api` holds the public function."""
