"""From files to a report, by the command line."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from bayesspec.cli import main
from bayesspec.demo import to_sdss
from bayesspec.grid import WavelengthGrid
from bayesspec.training.library import CLASSES
from bayesspec.training.split import split_by_hash

GRID = WavelengthGrid(size=128)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A table of stars and a folder of nights, some of both on the test side."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    names = [f"star {n}" for n in range(400)]
    names = [name for name, side in zip(names, split_by_hash(names), strict=True) if side == "test"][:30]
    coeff0, coeff1 = np.log10(3900), 8e-4
    wavelength = 10 ** (coeff0 + coeff1 * np.arange(480))
    flux = (wavelength / 6000) ** rng.uniform(-3, 3, (len(names), 1))
    table = Table(
        {"CLASS": [CLASSES[n % 10] for n in range(len(names))], "STAR": names, "FLUX": flux},
        meta={"COEFF0": coeff0, "COEFF1": coeff1},
    )
    table["SNR"] = 100.0
    table.write(folder / "stars.fits")
    nights = [str(n) for n in range(50000, 50100)]
    sides = split_by_hash([f"1000-{night}" for night in nights], test=0.25)
    (folder / "nights").mkdir()
    for night in [n for n, side in zip(nights, sides, strict=True) if side == "test"][:2]:
        exposures = 1 + 0.1 * rng.standard_normal((3, GRID.size))
        hdus = to_sdss(GRID, exposures, np.full(exposures.shape, 100.0), np.zeros(exposures.shape, np.int32))
        hdus.writeto(folder / "nights" / f"spec-1000-{night}-0001.fits")
    return folder


@pytest.mark.slow
def test_evaluate_writes_a_report_and_goes_on(files, small_bundle, tmp_path, capsys):
    """The second call runs nothing again and writes the same tables."""
    command = ["evaluate", str(small_bundle), "--library", str(files / "stars.fits")]
    command += ["--noise", str(files / "nights"), "-o", str(tmp_path), "--quick", "--no-baselines"]

    def run():
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
        runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
        tables = {path.name: path.read_text() for path in (tmp_path / "tables").iterdir()}
        return runs, tables

    first, second = run(), run()
    assert first == second
    assert {"losses.ecsv", "claims.ecsv", "coverage.ecsv"} <= set(first[1])
