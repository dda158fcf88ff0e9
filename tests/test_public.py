"""The face of the package: its names, and how little it takes to import it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bayesspec

HEAVY = ("torch", "pyro", "arviz", "sklearn", "matplotlib")


@pytest.mark.parametrize("name", [name for name in bayesspec.__all__ if name != "__version__"])
def test_public_names_exist_and_are_documented(name):
    assert getattr(bayesspec, name).__doc__
    assert name in dir(bayesspec)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'denoize'"):
        _ = bayesspec.denoize


@pytest.mark.parametrize(
    "statement",
    ["import bayesspec", "from bayesspec import read, Observation, WavelengthGrid", "import bayesspec.cli"],
)
def test_light_imports_stay_light(statement):
    code = f"import sys; {statement}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_map_does_not_wait_for_what_it_does_not_need():
    """The distributions of scipy take half a second to load."""
    code = (
        "import sys, bayesspec, numpy as np; "
        "star = bayesspec.Observation(np.linspace(3900, 9100, 400), np.ones(400)); "
        "bayesspec.denoise(star, model='kang2021'); print('scipy.stats' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_version_is_that_of_the_distribution():
    from importlib.metadata import PackageNotFoundError, version

    try:
        installed = version("bayesspec-stars")
    except PackageNotFoundError:
        pytest.skip("bayesspec-stars is not installed, only on the path")
    assert installed == bayesspec.__version__
