"""Wheel and sdist build, install into an empty environment, and run there, outside the checkout."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def test_contents(distributions):
    wheel, sdist = distributions
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {n for n in top if "dist-info" not in n} == {"bench", "megalodon_jax", "pallas_kernels", "reference"}
    for package in ("bench", "megalodon_jax", "pallas_kernels", "reference"):
        assert f"{package}/py.typed" in names
    packages = [ROOT / package for package in top if (ROOT / package).is_dir()]
    sources = {str(path.relative_to(ROOT)) for package in packages for path in package.rglob("*.py")}
    assert sources <= set(names)
    assert {"megalodon_jax/training/configs/llama_512.yaml", "bench/training/llama.yaml"} <= set(names)
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("pyproject.toml") for name in archive.getnames())


def test_sdist_installs(distributions, tmp_path):
    _, sdist = distributions
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--target", tmp_path, sdist], check=True
    )
    code = "import megalodon_jax, bench; print(megalodon_jax.__file__, bench.__file__)"
    origin = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout
    assert all(Path(p).is_relative_to(tmp_path) for p in origin.split())


def test_installed_wheel_runs_outside_the_checkout(distributions, tmp_path):
    """A new environment with the wheel; its dependencies come from this one, so that nothing is downloaded twice."""
    wheel, _ = distributions
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--target", site, wheel], check=True
    )
    here = next(p for p in sys.path if p.endswith("site-packages"))
    # A plain path line, not site.addsitedir: the editable install of this checkout must not be seen.
    (site / "dependencies.pth").write_text(here + "\n")
    env = {"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}

    def run(*arguments):
        return subprocess.run(
            [python, *arguments], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
        ).stdout

    origin = run("-c", "import megalodon_jax, bench; print(megalodon_jax.__file__, bench.__file__)")
    assert all(Path(p).is_relative_to(site) for p in origin.split())
    doctor = run("-m", "megalodon_jax", "doctor")
    assert "complex_ema" in doctor
    assert "chosen" in doctor
    assert "ours" in run("-m", "bench", "cpu", "--lengths", "64", "128", "--rounds", "1")
