"""Star libraries: tables of clean spectra with a class, on the model's grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from bayesspec.exceptions import ReadError
from bayesspec.grid import WavelengthGrid, mean_absolute_flux, overlap_matrix, rebin

from .split import near_duplicates, split_by_hash

__all__ = ["CLASSES", "StarLibrary"]

CLASSES = ("O", "B", "A", "F", "G", "K", "M", "CV", "Carbon", "WD")
"""The ten classes of the paper, eq. (6)."""

BELIEVABLE = 3.0
"""A spectrum's errors are used if they agree with its catalogue's S/N within this factor: libraries without
errors contain meaningless constants."""

DUPLICATE_DISTANCE = {"template": 0.01, "model": 0.005}
"""Per-pixel rms difference below which two templates, or two theoretical spectra, count as one star."""


@dataclass(frozen=True, eq=False)
class StarLibrary:
    """Clean spectra at mean |flux| = 1, with information about them.

    Arguments:
        flux: (N, D), 0 where masked.
        ivar: (N, D), 0 where masked or unknown.
        mask: (N, D), True = bad.
        klass: (N,), index into `CLASSES`.
        star: (N,), identity of the star, by which the data are split.
        kind: (N,), observed, stack or model.
        source: (N,), the catalogue it is from.
        snr: (N,), median flux / sigma.
    """

    flux: NDArray[np.float32]
    ivar: NDArray[np.float32]
    mask: NDArray[np.bool_]
    klass: NDArray[np.int64]
    star: NDArray[np.str_]
    kind: NDArray[np.str_]
    source: NDArray[np.str_]
    snr: NDArray[np.float32]

    @classmethod
    def read(cls, paths: str | Path | Iterable[str | Path], grid: WavelengthGrid) -> StarLibrary:
        """Read library tables and bring them onto the grid.

        A table has one row per spectrum with the columns CLASS, STAR and FLUX (M,), optionally IVAR (M,),
        KIND, SOURCE and SNR, and the header keywords COEFF0 and COEFF1 of its wavelengths
        10**(COEFF0 + COEFF1 * pixel), vacuum Angstrom. Names are case-insensitive. Rows of other classes, and
        rows that observe less than half of the grid, are left out.

        Raises:
            ReadError: if a table lacks a column or keyword, or no row is left.
        """
        paths = [paths] if isinstance(paths, str | Path) else list(paths)
        parts = [_read_table(Path(path), grid) for path in paths]
        library = cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))
        # Two survey stars, named by their positions, can be this similar; only templates repeat each other.
        model = library.kind == "model"
        template = ~model & np.array([not _is_position(star) for star in library.star])
        star = library.star
        for rows, distance in zip((template, model), DUPLICATE_DISTANCE.values(), strict=True):
            star = near_duplicates(star, library.flux, library.mask, distance=distance, among=rows)
        return replace(library, star=star)

    def select(self, rows: NDArray) -> StarLibrary:
        """The library's rows by index or boolean mask."""
        return StarLibrary(*(getattr(self, f.name)[rows] for f in fields(self)))

    def split(self, side: str, *, salt: str = "") -> StarLibrary:
        """The stars of one side (train, validation, test) of `split_by_hash`."""
        return self.select(split_by_hash(self.star, salt=salt) == side)

    def clean(self, min_snr: float, *, thin: int = 100, thin_snr: float = 8.0) -> StarLibrary:
        """Spectra above an S/N; classes with fewer than `thin` of these keep all above `thin_snr`."""
        high = self.snr >= min_snr
        count = np.bincount(self.klass[high], minlength=len(CLASSES))
        return self.select(high | ((count[self.klass] < thin) & (self.snr >= thin_snr)))

    @property
    def believable(self) -> NDArray[np.bool_]:
        """Real spectra with plausible errors, which agree with the catalogue's S/N within a factor, (N,)."""
        signal = np.abs(self.flux) * np.sqrt(self.ivar)
        stated = np.array([np.median(row[~bad]) for row, bad in zip(signal, self.mask, strict=True)])
        near = (stated > self.snr / BELIEVABLE) & (stated < self.snr * BELIEVABLE)
        return (self.kind != "model") & near

    def votes(self, model_vote: float = 1.0) -> NDArray[np.float64]:
        """Weight of each row, (N,): the spectra of a star have sum 1, of a theoretical one `model_vote`."""
        _, star, per_star = np.unique(self.star, return_inverse=True, return_counts=True)
        return np.where(self.kind == "model", model_vote, 1.0) / per_star[star]

    def sampling_weights(self, balance: float = 1.0, model_vote: float = 1.0) -> NDArray[np.float64]:
        """Probability of each row in training, (N,), from its weight (`votes`) and its class.

        Arguments:
            balance: The probability of a class is proportional to (total weight)**(1 - balance): with 1 all
                classes, with 0 all stars are equally probable.
            model_vote: Weight of a theoretical star; a real one has weight 1.
        """
        vote = self.votes(model_vote)
        total = np.bincount(self.klass, weights=vote, minlength=len(CLASSES))
        weight = vote * total[self.klass] ** -balance
        return weight / weight.sum()

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of spectra by class and kind, for the card of a bundle."""
        return {
            name: {
                str(k): int(n)
                for k, n in zip(*np.unique(self.kind[self.klass == c], return_counts=True), strict=True)
            }
            for c, name in enumerate(CLASSES)
        }

    def __len__(self) -> int:
        return len(self.flux)


def _is_position(star: str) -> bool:
    return star[:1].isdigit() and ("+" in star or "-" in star[1:])


def _column(table: Table, names: Sequence[str], path: Path, default: object = None) -> NDArray:
    known = {name.lower(): name for name in table.colnames}
    for name in names:
        if name.lower() in known:
            column = table[known[name.lower()]]
            return np.asarray(column.filled() if hasattr(column, "filled") else column)
    if default is None:
        raise ReadError(f"{path}: a star library needs a column {' or '.join(names)}")
    return np.full(len(table), default)


def _read_table(path: Path, grid: WavelengthGrid) -> StarLibrary:
    try:
        table = Table.read(path)
    except Exception as error:
        cause = (str(error).splitlines() or [type(error).__name__])[0]
        raise ReadError(f"{path}: not a table astropy can read ({cause})") from error
    header = {str(k).upper(): v for k, v in table.meta.items()}
    if not {"COEFF0", "COEFF1"} <= header.keys():
        raise ReadError(f"{path}: header keywords COEFF0 and COEFF1 (log10 wavelength) are missing")

    klass_name = _column(table, ["CLASS"], path).astype(str)
    table = table[np.isin(np.char.strip(klass_name), CLASSES)]
    if not len(table):
        raise ReadError(f"{path}: no row is of one of the classes {', '.join(CLASSES)}")
    flux = _column(table, ["FLUX"], path).astype(np.float64)
    has_ivar = "ivar" in {name.lower() for name in table.colnames}
    ivar = _column(table, ["IVAR"], path).astype(np.float64) if has_ivar else np.ones_like(flux)
    wavelength = 10 ** (header["COEFF0"] + header["COEFF1"] * np.arange(flux.shape[1]))
    bad = ~(np.isfinite(flux) & np.isfinite(ivar) & (ivar > 0))

    on_grid = rebin(
        wavelength, flux, np.where(bad, 1.0, ivar), bad, grid, overlap=overlap_matrix(wavelength, grid)
    )
    unit = mean_absolute_flux(on_grid.flux, on_grid.mask)
    keep = ((~on_grid.mask).mean(-1) >= 0.5) & (unit > 0)
    unit = np.where(unit > 0, unit, 1.0)[:, None]
    names = {name: c for c, name in enumerate(CLASSES)}

    def text(names: Sequence[str], default: str | None = None) -> NDArray[np.str_]:
        return np.char.strip(_column(table, names, path, default).astype(str))

    library = StarLibrary(
        (on_grid.flux / unit).astype(np.float32),
        (on_grid.ivar * unit**2 * has_ivar).astype(np.float32),
        on_grid.mask,
        np.array([names[c] for c in text(["CLASS"])]),
        text(["STAR"]),
        text(["KIND"], "observed"),
        text(["SOURCE"], path.name),
        _column(table, ["SNR"], path, np.inf).astype(np.float32),
    )
    return library.select(keep)
