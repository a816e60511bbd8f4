"""Settings of the whole suite: strict dtype promotion, two CPU devices, one line for all tests skipped for one reason.

Compilation is most of the suite's time, so the compiler's optimiser is off, unless XLA_FLAGS says otherwise:
`make test` runs the tests marked `optimized` in a second process with the optimiser on.

TESTS_END, in seconds since 1970, is when no more tests begin; a line of the summary counts those there was no time for.
"""

import gc
import importlib.util
import math
import os
import random
import sys
import time
from pathlib import Path

# `pytest -m cuda` runs on the GPU, optimised. Workers of pytest-xdist inherit what the main process decided.
if "PYTEST_XDIST_WORKER" not in os.environ and not any("cuda" in argument for argument in sys.argv):
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=2")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # with the wheels of the extra `inspect`, jax would look for a GPU
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
gc.set_threshold(100_000, 50, 100)  # tracing makes many objects and little garbage

# Minutes each. They come first, so that no worker of `make test` is left with one of them at the end.
LONG = {f"test_{name}.py" for name in ("ema_kernels", "model", "streaming", "inspect_ema", "bench_inspect", "cli")}
DOCUMENTED = ("test_readme.py", "test_followed_pages.py")  # code blocks of the documents, which come before the rest
END = float(os.environ.get("TESTS_END", "inf"))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)
    if math.isfinite(END):  # another order of files every time, so that it is not always the same ones that are left
        names = sorted({item.path.name for item in items})
        random.Random(END).shuffle(names)
        items.sort(key=lambda item: (item.path.name not in DOCUMENTED, names.index(item.path.name)))


def pytest_runtest_setup(item):
    if time.time() > END:
        pytest.skip("there was no time left (TESTS_END)")
    if item.get_closest_marker("cuda") and jax.default_backend() != "gpu":
        pytest.skip("needs an NVIDIA GPU, and pytest -m cuda")  # skipped from here, they make one line of the summary
    if item.get_closest_marker("torch_ref") and importlib.util.find_spec("megalodon") is None:
        pytest.skip("needs megalodon-hf: pip install git+https://github.com/pszemraj/megalodon-hf")


@pytest.fixture(autouse=True)
def programs_given_back():
    """Drop compiled programs once they fill half of the 65,530 memory maps after which Linux lets a process crash."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > 30_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def unhooked():
    """Switch off run-time shape checks, which would answer bad input before the library's own errors do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def compilations():
    """Names of the programs compiled since it was last cleared."""
    events = []

    def listen(name: str, *_, **__):
        if "backend_compile" in name:
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def torch_oracle():
    """The PyTorch oracle module; skips where torch is not installed."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.set_num_threads(1)
    from reference import oracle_torch

    return oracle_torch
