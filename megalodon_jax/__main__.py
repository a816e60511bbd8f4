"""`python -m megalodon_jax`."""

import sys

from megalodon_jax.cli.main import main

sys.exit(main())
