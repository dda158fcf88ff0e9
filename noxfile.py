"""A session for each check: `nox` runs the quick ones, `nox -s slow` and so on the others."""

from __future__ import annotations

import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.4"
nox.options.sessions = ["lint", "types", "tests", "docs", "build"]

LARGEST_WHEEL = 15_000_000
"""Bytes; nearly all of it is the two models."""

IN_WHEEL = {"bayesspec/py.typed", *(f"bayesspec/pretrained/{m}/model.json" for m in ("stellar", "kang2021"))}
"""What no import would miss."""


@nox.session
def tests(session: nox.Session) -> None:
    """Laws and doctests, minutes."""
    _pytest(session)


@nox.session
def slow(session: nox.Session) -> None:
    """Long statistical tests."""
    _pytest(session, "-m", "slow")


@nox.session
def gpu(session: nox.Session) -> None:
    """Tests that need a CUDA device."""
    _pytest(session, "-m", "gpu")


@nox.session
def tutorials(session: nox.Session) -> None:
    """Execute the notebooks."""
    session.install(".[test,tutorials]")
    session.run("pytest", "-m", "tutorials", *session.posargs)


@nox.session(python="3.11", venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The tests with the lowest versions that pyproject.toml names."""
    session.install("--resolution", "lowest-direct", ".[test]")
    # What these old packages import is the newest there is, of which they use what is deprecated now.
    session.run("pytest", "-W", "default::DeprecationWarning", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types, as strictly as pyproject.toml says."""
    session.install(".[dev]")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The pages, warnings as errors."""
    session.install(".[docs]")
    session.run("sphinx-build", "-W", "--keep-going", "docs", "docs/_build")


@nox.session
def build(session: nox.Session) -> None:
    """Sdist and wheel, what is in them, and how large they are."""
    session.install("build", "twine")
    folder = Path(session.create_tmp(), "dist").resolve()
    for old in folder.glob("*"):
        old.unlink()
    session.run("python", "-m", "build", "--outdir", str(folder))
    session.run("twine", "check", "--strict", *map(str, folder.iterdir()))

    (wheel,) = folder.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    if missing := IN_WHEEL.difference(inside):
        session.error(f"{wheel.name} lacks {', '.join(sorted(missing))}")
    if (size := wheel.stat().st_size) > LARGEST_WHEEL:
        session.error(f"{wheel.name} has {size / 1e6:.1f} MB, more than {LARGEST_WHEEL / 1e6:.0f}")
    session.log(f"{wheel.name}: {size / 1e6:.1f} MB, {len(inside)} files")


def _pytest(session: nox.Session, *which: str) -> None:
    session.install(".[test]")
    session.run("pytest", *which, *session.posargs)
