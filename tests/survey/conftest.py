"""Tables of made-up spectra, and runs over them in processes of their own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table


@pytest.fixture(scope="session")
def make_table() -> Callable[..., Path]:
    """Write a star library of N made-up spectra on 200 pixels; every row differs."""

    def make(path: Path, count: int, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        loglam = np.log10(3950.0) + 0.0018 * np.arange(200)
        slope = rng.uniform(-2, 2, (count, 1)).astype(np.float32)
        flux = (10**loglam / 6000).astype(np.float32) ** slope
        flux += 0.1 * rng.standard_normal(flux.shape, dtype=np.float32)
        columns = {"ID": [f"star {n}" for n in range(count)], "FLUX": flux, "IVAR": np.full_like(flux, 100)}
        Table(columns, meta={"COEFF0": loglam[0], "COEFF1": 0.0018}).write(path, overwrite=True)
        return path

    return make


@pytest.fixture
def command() -> Callable[..., subprocess.Popen]:
    """Begin `bayesspec ...` in a process of its own."""
    code = "from bayesspec.cli import main; main()"

    def begin(*arguments: object, **options) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        line = [sys.executable, "-c", code, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(line, env=environment, text=True, **pipes)

    return begin


@pytest.fixture(scope="session")
def fingerprint() -> Callable[[Path], dict[str, str]]:
    """What a run has left for its user, by name: a hash of each file."""

    def hashes(out: Path) -> dict[str, str]:
        files = [path for path in out.rglob("*") if path.is_file() and ".bayesspec" not in path.parts]
        return {
            str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(files)
        }

    return hashes
