"""What every test shares: where the development spectra are, and which third-party warnings are known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(
    os.environ.get("BAYESSPEC_DATA", Path(__file__).parents[1].parent / "shared" / "data")
).resolve()


def shared_files(pattern: str) -> list[Path]:
    """Development spectra that match, for parametrising; empty where they are absent."""
    return sorted(SHARED.glob(pattern))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development spectra; tests that read it skip where it is absent."""
    if not (SHARED / "stars.fits.gz").exists():
        pytest.skip("needs the development spectra (set BAYESSPEC_DATA to their folder)")
    return SHARED
