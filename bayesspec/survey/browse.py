"""Access to a finished or stopped run: its catalogue by columns, and spectra of single stars."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray

from bayesspec.exceptions import BayesspecError
from bayesspec.observation import printable
from bayesspec.results.products import SUMMARY

from .catalogue import CATALOGUE

__all__ = ["Browser", "open_run"]


class Browser:
    """The catalogue of a run with parts, with one column or some rows in memory at a time.

    Arguments:
        root: The output folder.
    """

    def __init__(self, root: Path) -> None:
        import pyarrow.dataset

        self.root = root
        self._table = pyarrow.dataset.dataset(root / CATALOGUE)
        self.units = {
            field.name: (field.metadata or {}).get(b"unit", b"").decode() for field in self._table.schema
        }

    def column(self, name: str) -> NDArray[Any]:
        """Values of a column; NaN where a row has no number."""
        return self._table.to_table(columns=[name]).column(0).to_numpy()

    def where(self, name: str, value: str, *, equal: bool = True) -> NDArray[np.int64]:
        """Rows with this text, or with any other."""
        import pyarrow.compute as pc

        column = pc.fill_null(self._table.to_table(columns=[name]).column(0), "")
        return np.flatnonzero((pc.equal if equal else pc.not_equal)(column, value).to_numpy())

    def rows(self, positions: Sequence[int] | NDArray[np.int64]) -> list[dict[str, Any]]:
        """Some rows as dictionaries, without missing values."""
        found = self._table.take(np.asarray(positions, dtype=np.int64)).to_pylist()
        return [{key: value for key, value in row.items() if value is not None} for row in found]

    def spectrum(self, row: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """The spectrum of a row: columns by name, (D,) each."""
        part = _part(self.root / "parts" / row["part"])
        names = ("FLUX", "FLUX_STD", "OBSERVED", "OBSERVED_STD", "MASK")
        found = {name: part[0][name][row["row"]] for name in names if name in part[0].names}
        return {"WAVELENGTH": part[1], **found}


class _StarBrowser(Browser):
    """The same for a run with one file per star, whose summary is small."""

    def __init__(self, root: Path) -> None:
        self.root, self._summary = root, Table.read(root / SUMMARY, format="ascii.ecsv")
        self.units = {name: str(column.unit or "") for name, column in self._summary.columns.items()}

    def column(self, name: str) -> NDArray[Any]:
        column: Any = np.ma.asarray(self._summary[name])
        if column.dtype.kind == "U":
            return column.filled("")
        return column.astype(float).filled(np.nan) if column.mask.any() else column.data

    def where(self, name: str, value: str, *, equal: bool = True) -> NDArray[np.int64]:
        return np.flatnonzero((self.column(name) == value) == equal)

    def rows(self, positions: Sequence[int] | NDArray[np.int64]) -> list[dict[str, Any]]:
        columns = {name: self.column(name) for name in self._summary.colnames}
        rows = ({name: values[n].item() for name, values in columns.items()} for n in positions)
        return [{k: v for k, v in row.items() if v == v} for row in rows]  # without NaN

    def spectrum(self, row: dict[str, Any]) -> dict[str, NDArray[Any]]:
        table = Table.read(self.root / row["file"], hdu="SPECTRUM")
        found = {name: np.asarray(table[name]) for name in table.colnames}
        if "OBSERVED_IVAR" in found:
            ivar = found.pop("OBSERVED_IVAR")
            found["OBSERVED_STD"] = np.divide(1, np.sqrt(ivar), out=np.zeros_like(ivar), where=ivar > 0)
        return found


@lru_cache(maxsize=8)
def _part(path: Path) -> tuple[fits.FITS_rec, NDArray[np.float64]]:
    with fits.open(path, memmap=False) as hdus:
        return hdus["SPECTRA"].data, np.array(hdus["WAVELENGTH"].data["WAVELENGTH"], dtype=float)


def open_run(out: str | Path) -> Browser:
    """The run in a folder.

    Raises:
        BayesspecError: if there is no run, or it has not written its catalogue yet.
    """
    root = Path(out)
    try:
        if (root / CATALOGUE).is_file():
            return Browser(root)
        if (root / SUMMARY).is_file():
            return _StarBrowser(root)
    except Exception as error:  # any error of astropy or Arrow about the file
        raise BayesspecError(f"{root}: the catalogue cannot be read ({printable(str(error))})") from error
    raise BayesspecError(f"{printable(str(root))}: no catalogue; a run writes it when it ends or is stopped")
