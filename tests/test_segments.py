"""What `segment_ids` means, on arrays small enough to read."""

import jax.numpy as jnp
import numpy as np

from reference import segments

IDS = jnp.asarray([[1, 1, 1, 2, 2, 0, 2], [3, 3, 3, 3, 3, 3, 3]])


def test_runs():
    np.testing.assert_array_equal(segments.run_start_index(IDS), [[0, 0, 0, 3, 3, 5, 6], [0] * 7])
    np.testing.assert_array_equal(segments.run_end_index(IDS), [[3, 3, 3, 5, 5, 6, 7], [7] * 7])
    np.testing.assert_array_equal(segments.run_positions(IDS), [[0, 1, 2, 0, 1, 0, 0], [*range(7)]])


def test_chunks_of_runs():
    first, end = segments.run_chunks((2, 7), 2, IDS, None)
    np.testing.assert_array_equal(first, [[0, 0, 2, 3, 3, 5, 6], [0, 0, 2, 2, 4, 4, 6]])
    np.testing.assert_array_equal(end, [[2, 2, 3, 5, 5, 6, 7], [2, 2, 4, 4, 6, 6, 7]])


def test_chunks_of_tokens_that_go_on():
    """In chunks of 4, with 3 tokens before the first row and none before the second."""
    first, end = segments.run_chunks((2, 7), 4, None, jnp.asarray([3, 0]))
    np.testing.assert_array_equal(first, [[0, 1, 1, 1, 1, 5, 5], [0, 0, 0, 0, 4, 4, 4]])
    np.testing.assert_array_equal(end, [[1, 5, 5, 5, 5, 7, 7], [4, 4, 4, 4, 7, 7, 7]])


def test_a_cache_is_seen_by_the_rest_of_its_chunk():
    span = lambda *n, ids=None: segments.cached_span(jnp.asarray(n), 5, 7, 4, ids)  # noqa: E731
    np.testing.assert_array_equal(span(3, 0), [[3, 0], [1, 4]])
    np.testing.assert_array_equal(span(4, 9), [[4, 4], [0, 0]])
    np.testing.assert_array_equal(span(0, 1, ids=IDS), [[0, 1], [3, 3]])  # the first run may end before
