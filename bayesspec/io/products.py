"""What a run leaves on disk: a FITS table per star and one summary with a row per input."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from bayesspec.exceptions import BayesspecError

from .source import stem

if TYPE_CHECKING:
    from bayesspec.inference.result import Result

__all__ = ["SUMMARY", "ProductWriter", "unique_stems", "write_products"]

SUMMARY = "summary.ecsv"
"""Name of the table of the run."""

TABLE, FIGURE = ".denoised.fits", ".png"


def write_products(result: Result, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write a result into a folder: a FITS table per star, and `summary.ecsv` with a row per input.

    Raises:
        BayesspecError: if one of these files is there and `overwrite` is False.

    Returns:
        The folder.
    """
    failed = {failure.position: failure for failure in result.failures}
    total = len(result) + len(failed)
    stars = iter(result)
    rows = [failed.get(position) or next(stars) for position in range(total)]
    names = [row.name if position in failed else row.names[0] for position, row in enumerate(rows)]

    writer = ProductWriter(folder, names, overwrite=overwrite)
    for position, row in enumerate(rows):
        if position in failed:
            writer.fail(position, row.reason)
        else:
            writer.add(position, row)
    writer.close()
    return writer.folder


class ProductWriter:
    """Writes the products of a run star by star, so that no more than one is held in memory.

    The files of the whole run are settled before the first is written: an output that is there already is
    an error at once, not after hours.

    Arguments:
        folder: Where to write; made if need be.
        names: Of all inputs, in order: star names or file names. Two inputs of one name get two files.
        figures: Save a figure of every star beside its table.
        overwrite: Replace files of an earlier run.

    Raises:
        BayesspecError: if a product is there already and `overwrite` is False, or the folder cannot be made.
    """

    def __init__(
        self, folder: str | Path, names: Sequence[str], *, figures: bool = False, overwrite: bool = False
    ) -> None:
        self.folder, self.figures = Path(folder), figures
        self.names = tuple(names)
        self.stems = unique_stems(names)
        self._rows: list[dict[str, Any] | None] = [None] * len(self.names)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BayesspecError(f"{self.folder}: cannot be the output folder ({error.strerror})") from error
        there = {path.name for path in self.folder.iterdir()}
        wanted = [SUMMARY, *(f"{stem}{suffix}" for stem in self.stems for suffix in self._suffixes())]
        taken = [name for name in wanted if name in there]
        if taken and not overwrite:
            more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
            raise BayesspecError(
                f"{self.folder / taken[0]}{more}: there already, and overwriting was not asked for"
            )

    def add(self, position: int, star: Result) -> Path:
        """Write the table, and the figure, of one star: the input at this position."""
        path, *figure = (self.folder / f"{self.stems[position]}{suffix}" for suffix in self._suffixes())
        to_hdus(star).writeto(path, overwrite=True)
        if figure:
            star.plot().savefig(figure[0])
        row = star.table[0]
        probabilities = zip(star.classes, star.class_probabilities[0], strict=True)
        self._rows[position] = {
            "status": "ok",
            "reason": "",
            **{name: row[name] for name in star.table.colnames if name != "name"},
            **{f"p_{name}": float(p) for name, p in probabilities},
            **{f"z{k}": float(z) for k, z in enumerate(star.z[0], start=1)},
            "file": path.name,
        }
        return path

    def fail(self, position: int, reason: str) -> None:
        """Note that the input at this position has no result."""
        self._rows[position] = {"status": "failed", "reason": reason}

    def close(self) -> Path:
        """Write the summary: a row per input, in the order of the input."""
        path = self.folder / SUMMARY
        self.summary().write(path, format="ascii.ecsv", overwrite=True)
        return path

    def summary(self) -> Table:
        """The table of the run; what an input does not have is masked."""
        rows = [row or {"status": "not reached", "reason": "the run ended before"} for row in self._rows]
        columns = dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row)
        table = Table({"name": np.array(self.names, dtype=str)})
        for key in columns:
            missing = [key not in row for row in rows]
            values = [row[key] for row in rows if key in row]
            filler = type(values[0])()
            column = [row.get(key, filler) for row in rows]
            table[key] = MaskedColumn(column, mask=missing) if any(missing) else column
        return table

    def _suffixes(self) -> tuple[str, ...]:
        return (TABLE, FIGURE) if self.figures else (TABLE,)


def unique_stems(names: Sequence[str]) -> tuple[str, ...]:
    """A file name without suffix for each name; no two are equal, also where case does not count.

    Example:
        >>> unique_stems(["a/spec-1.fits", "b/spec-1.fits.gz", "HD 1", ""])
        ('spec-1', 'spec-1-2', 'HD_1', 'star')
    """
    stems: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", stem(name)).strip("._-")[:120] or "star"
        candidate, number = plain, 1
        while candidate.lower() in taken:
            number += 1
            candidate = f"{plain}-{number}"
        taken.add(candidate.lower())
        stems.append(candidate)
    return tuple(stems)


def to_hdus(star: Result) -> fits.HDUList:
    """The FITS file of one star: a table SPECTRUM, and in its header what is known of the star."""
    observed = star.observed
    columns = {"WAVELENGTH": star.wavelength * u.AA, "FLUX": star.flux[0] * star.units[0]}
    if star.flux_std is not None:
        columns["FLUX_STD"] = star.flux_std[0] * star.units[0]
    columns["OBSERVED"] = observed.flux[0] * star.units[0]
    if observed.ivar.any():
        columns["OBSERVED_IVAR"] = observed.ivar[0] * star.units[0] ** -2
    table = fits.BinTableHDU.from_columns(
        [*(_column(*column) for column in columns.items()), fits.Column("MASK", "L", array=observed.mask[0])],
        name="SPECTRUM",
    )
    table.header.extend(_cards(star), end=True)
    return fits.HDUList([fits.PrimaryHDU(), table])


def _cards(star: Result) -> list[tuple[str, Any, str]]:
    from bayesspec import __version__

    row = star.table[0]
    cards = [
        ("OBJECT", _ascii(star.names[0]), "star"),
        ("CREATOR", f"bayesspec {__version__}", "software"),
        ("MODEL", _ascii(star.model_name), "bundle"),
        ("MODELVER", _ascii(star.model_version), "version of the bundle"),
        ("METHOD", star.method, "inference"),
        ("CLASS", str(row["class"]), "best class"),
        ("CLASSP", float(row["probability"]), "probability of CLASS"),
        *(
            (f"P_{name.upper()}"[:8], float(p), f"probability of {name}")
            for name, p in zip(star.classes, star.class_probabilities[0], strict=True)
        ),
        *((f"Z{k}", float(z), "latent") for k, z in enumerate(star.z[0], start=1)),
        ("SCALE", float(row["scale"]), "mean |FLUX| over the grid"),
        ("NEXP", int(row["exposures"]), "exposures with an observed pixel"),
    ]
    seen = np.flatnonzero((~star.observed_mask[0]).any(-1))
    for k, e in enumerate(seen, start=1):
        factor = float(star.scale[0, e] * star.exposure_unit[0, e] / star.unit_flux[0])
        cards.append((f"SCALE{k}", factor, f"flux of exposure {k} relative to FLUX"))
    cards += [
        ("CHI2", float(row["chi2"]), "mean square of whitened noise, 1 = as modelled"),
        ("OUTLIER", float(row["outlier_score"]), "probability of rarer latents; small = outlier"),
        ("OBSFRAC", float(row["observed_fraction"]), "share of the grid observed"),
        ("USEDFRAC", float(row["used_fraction"]), "share of likelihood terms used"),
        ("LOGDENS", float(row["log_density"]), "log p(y, z, C)"),
    ]
    return cards + [(f"WARN{k}", _ascii(note), "") for k, note in enumerate(star.warnings[0], start=1)]


def _column(name: str, values: u.Quantity) -> fits.Column:
    # FITS has powers of ten only, so any other factor goes into the values; a few units it lacks.
    unit, spelled = values.unit, values.unit.to_string()
    for candidate in (unit, u.CompositeUnit(1, unit.bases, unit.powers)):
        with suppress(ValueError):
            unit, spelled = candidate, candidate.to_string("fits")
            break
    return fits.Column(name, "D", unit=spelled, array=values.to_value(unit))


def _ascii(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).encode("ascii", "replace").decode()
