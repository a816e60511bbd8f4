"""Suite `parity` on a GPU: every output and gradient of the kernels against float64, on the specs of the tests."""

import sys

from bench.gpu.session import Session
from bench.gpu.suite_ops import check
from bench.ops import Titled


def run(specs: Titled, session: Session) -> dict:
    """The record of these problems."""
    found = []
    for title, spec in specs.items():
        print(f"comparing {title} ...", file=sys.stderr, flush=True)
        found.append(check(title, spec, session, shorten=False))
    return session.record("parity", [], found)
