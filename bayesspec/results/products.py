"""What a run leaves on disk: a FITS table per star and one summary with a row per input."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, Table

from bayesspec.exceptions import BayesspecError
from bayesspec.io.source import stem
from bayesspec.observation import printable

from .star import Failure, Star

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bayesspec.grid import WavelengthGrid

__all__ = [
    "NOT_REACHED",
    "SUMMARY",
    "ProductWriter",
    "star_row",
    "unique_stems",
    "write_products",
    "write_star",
    "written",
]

SUMMARY = "summary.ecsv"
"""Name of the table of the run."""

QUICK = 0.5
"""Seconds: a summary that is written faster is written after every batch."""

NOT_REACHED = "not reached"
"""Status of an input that the run has not come to."""

SHARE = 0.1
"""Of the time of a run, at most, for writing the summary again and again: of 10,000 rows it takes seconds."""

TABLE, FIGURE = ".denoised.fits", ".png"


def write_products(rows: Sequence[Star | Failure], folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write stars into a folder: a FITS table for each, and `summary.ecsv` with a row per input.

    Arguments:
        rows: A star for each input, or why there is none.
        folder: Where to write; made if need be.
        overwrite: Replace files of an earlier run.

    Raises:
        BayesspecError: if one of these files is there and `overwrite` is False, or it cannot be written.

    Returns:
        The folder.
    """
    writer = ProductWriter(folder, [row.name for row in rows], overwrite=overwrite)
    for position, row in enumerate(rows):
        if isinstance(row, Failure):
            writer.fail(position, row.reason)
        else:
            writer.add(position, row)
    writer.write_summary()
    return writer.folder


class ProductWriter:
    """Writes the products of a run star by star, so that no more than one is held in memory.

    The files of the whole run are settled before the first is written: an output that is there already is
    an error at once, not after hours. Each file is written beside its place and then moved there, so that
    none is ever half a file, whatever ends the run.

    The summary of a run that made no product stands in nobody's way, and is replaced.

    Arguments:
        folder: Where to write; made if need be.
        names: Of all inputs, in order: star names or file names. Two inputs of one name get two files.
        stems: What the files are called after, if not after the names.
        figures: Save a figure of every star beside its table.
        overwrite: Replace files of an earlier run. What it left of an input that now fails is removed.

    Raises:
        BayesspecError: if a product is there already and `overwrite` is False, a folder has its name, or the
            output folder cannot be made.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        *,
        stems: Sequence[str] | None = None,
        figures: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.folder, self.figures = Path(folder), figures
        self.names = tuple(map(printable, names))
        self.stems = unique_stems(names if stems is None else stems)
        self._rows: list[dict[str, Any] | None] = [None] * len(self.names)
        self._next_summary = 0.0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = {path.name: path.is_dir() for path in self.folder.iterdir()}
        except OSError as error:
            raise BayesspecError(f"{self.folder}: cannot be the output folder ({error.strerror})") from error
        products = [f"{stem}{suffix}" for stem in self.stems for suffix in self._suffixes]
        taken = [name for name in (SUMMARY, *products) if name in there]
        if blocked := [name for name in taken if there[name]]:
            raise BayesspecError(f"{self.folder / blocked[0]}: is a folder, and a product has this name")
        if taken[:1] == [SUMMARY] and _made_nothing(self.folder / SUMMARY):
            taken = taken[1:]
        if taken and not overwrite:
            more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
            raise BayesspecError(
                f"{self.folder / taken[0]}{more}: there already, and overwriting was not asked for"
            )
        self._earlier = {stem for stem in self.stems if f"{stem}{TABLE}" in there}

    def add(self, position: int, star: Star) -> Path:
        """Write the table, and the figure, of one star: the input at this position.

        Raises:
            BayesspecError: if a file cannot be written.
        """
        self.note(position, write_star(star, self.folder, self.stems[position], figures=self.figures))
        return self.folder / f"{self.stems[position]}{TABLE}"

    def note(self, position: int, row: dict[str, Any]) -> None:
        """Note the row of an input whose products `write_star` has written.

        Raises:
            BayesspecError: if the figure of an earlier run cannot be removed.
        """
        if not self.figures:
            self._remove_earlier(position, FIGURE)
        self._rows[position] = row

    def resume(self) -> list[int]:
        """Take what the summary knows of a run that was stopped; gives the positions that are still to do.

        Raises:
            BayesspecError: if the summary is of other inputs.
        """
        path = self.folder / SUMMARY
        try:
            table = Table.read(path, format="ascii.ecsv")
        except FileNotFoundError:
            return list(range(len(self.names)))
        except Exception as error:  # astropy's readers fail with any
            raise BayesspecError(f"{path}: not the summary of a run ({printable(str(error))})") from error
        if list(table["name"]) != list(self.names):
            raise BayesspecError(f"{path}: the summary of other inputs")
        for position, row in enumerate(table):
            if row["status"] != NOT_REACHED:
                own = {key: row[key] for key in table.colnames if not np.ma.is_masked(row[key])}
                del own["name"]
                self._rows[position] = {key: str(v) if isinstance(v, str) else v for key, v in own.items()}
        return [position for position, row in enumerate(self._rows) if row is None]

    def fail(self, position: int, reason: str) -> None:
        """Note that the input at this position has no result.

        Raises:
            BayesspecError: if the product of an earlier run cannot be removed.
        """
        self._remove_earlier(position, TABLE, FIGURE)
        self._rows[position] = {"status": "failed", "reason": printable(reason)}

    def write_summary(self) -> Path:
        """Write the summary as it is now: a row per input, in the order of the input.

        Raises:
            BayesspecError: if it cannot be written.
        """
        begin = time.monotonic()
        with written(path := self.folder / SUMMARY) as part:
            self.summary().write(part, format="ascii.ecsv", overwrite=True)
        end = time.monotonic()
        self._next_summary = end + ((end - begin) / SHARE if end - begin > QUICK else 0.0)
        return path

    def update_summary(self) -> None:
        """Write the summary, unless that took a good part of the time of late."""
        if time.monotonic() >= self._next_summary:
            self.write_summary()

    def summary(self) -> Table:
        """The table of the run; what an input does not have is masked."""
        rows = [row or {"status": NOT_REACHED, "reason": "the run has not come to it"} for row in self._rows]
        columns = dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row)
        # The status comes first: a line that begins with a name like "#1" would be read as a comment.
        status = np.array([row["status"] for row in rows], dtype=str)
        table = Table({"status": status, "name": np.array(self.names, dtype=str)})
        for key in columns:
            missing = [key not in row for row in rows]
            values = [row[key] for row in rows if key in row]
            filler = type(values[0])()
            column = [row.get(key, filler) for row in rows]
            table[key] = MaskedColumn(column, mask=missing) if any(missing) else column
        return table

    @property
    def failed(self) -> int:
        """How many inputs are known to have no result."""
        return sum(row is not None and row["status"] == "failed" for row in self._rows)

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return (TABLE, FIGURE) if self.figures else (TABLE,)

    def _remove_earlier(self, position: int, *suffixes: str) -> None:
        """What an earlier run left of this input, and this run says otherwise."""
        if (stem := self.stems[position]) not in self._earlier:
            return
        for path in (self.folder / f"{stem}{suffix}" for suffix in suffixes):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise BayesspecError(f"{path}: cannot be removed ({error.strerror})") from error


def write_star(star: Star, folder: Path, stem: str, *, figures: bool = False) -> dict[str, Any]:
    """Write the table, and the figure, of one star; gives its row of the summary.

    Raises:
        BayesspecError: if a file cannot be written.
    """
    with written(path := folder / f"{stem}{TABLE}") as part:
        to_hdus(star).writeto(part, overwrite=True)
    if figures:
        from .plotting import plot_star, save_figure

        with written(folder / f"{stem}{FIGURE}") as part:
            save_figure(plot_star(star), part)
    return {**star_row(star), "file": path.name}


def star_row(star: Star) -> dict[str, Any]:
    """What is known of one star, number by number: all of `Result.table`, class probabilities, latents."""
    probabilities = zip(star.classes, star.class_probabilities, strict=True)
    return {
        "status": "ok",
        "reason": "",
        **{name: value for name, value in star.row.items() if name != "name"},
        "warnings": printable(star.row["warnings"]),
        **{f"p_{name}": float(p) for name, p in probabilities},
        **{f"z{k}": float(z) for k, z in enumerate(star.z, start=1)},
    }


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A place beside a file, to write to; it becomes the file when the block ends, and nothing if it fails.

    Raises:
        BayesspecError: if the file cannot be written, such as on a full disk.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise BayesspecError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _made_nothing(summary: Path) -> bool:
    """Whether it is the summary of a run that has no product; what cannot be read is somebody's file."""
    try:
        return "ok" not in set(Table.read(summary, format="ascii.ecsv")["status"])
    except Exception:  # astropy's readers fail with any
        return False


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


def to_hdus(star: Star) -> fits.HDUList:
    """The FITS file of one star: all that is known pixel by pixel in a table SPECTRUM, and images before it.

    Of a table specutils takes columns for what their units say: what was observed for the uncertainty, and a
    flux without unit for nothing. So the clean spectrum, its standard deviation and its mask are images, too,
    whose names say what they are. The star's keywords are in the table's header and in the file's, which
    specutils keeps.
    """
    observed, unit = star.observed, star.unit
    columns = {"WAVELENGTH": star.grid.wavelength * u.AA, "FLUX": star.flux * unit}
    if star.flux_std is not None:
        columns["FLUX_STD"] = star.flux_std * unit
    columns["OBSERVED"] = observed.flux * unit
    if observed.ivar.any():
        columns["OBSERVED_IVAR"] = observed.ivar * unit**-2
    table = fits.BinTableHDU.from_columns(
        [*(_column(*column) for column in columns.items()), fits.Column("MASK", "L", array=observed.mask)],
        name="SPECTRUM",
    )
    values, spelled = _in_fits(columns["FLUX"])
    images = [fits.PrimaryHDU(values)]
    images[0].header.extend([*_axis(star.grid), ("BUNIT", spelled, "of the flux")])
    if "FLUX_STD" in columns:
        images.append(fits.ImageHDU(_in_fits(columns["FLUX_STD"])[0], name="STD"))
    images.append(fits.ImageHDU(observed.mask.astype(np.uint8), name="MASK"))
    images[-1].header["BFORM"] = ("L", "0 and 1 are False and True")
    for hdu in (images[0], table):
        hdu.header.extend(_cards(star), end=True)
    return fits.HDUList([*images, table])


def _axis(grid: WavelengthGrid) -> list[tuple[str, Any, str]]:
    """The wavelengths as FITS has them: w = CRVAL1 + CDELT1 * p, or CRVAL1 * exp(CDELT1 / CRVAL1 * p)."""
    step = (grid.stop - grid.start) / (grid.size - 1)
    if grid.log:
        step = grid.start * np.log(grid.stop / grid.start) / (grid.size - 1)
    return [
        ("CTYPE1", "WAVE-LOG" if grid.log else "WAVE", "in vacuum"),
        ("CUNIT1", "Angstrom", ""),
        ("CRPIX1", 1.0, ""),
        ("CRVAL1", grid.start, "of the first pixel"),
        ("CDELT1", step, "at the first pixel"),
    ]


_BEYOND_THE_LIBRARY = (
    ("VELOFF", "velocity_offset", "[km/s] beyond the library's stars"),
    ("VELOFFE", "velocity_offset_err", "[km/s] standard deviation"),
    ("EBVEXC", "ebv_excess", "[mag] E(B-V) beyond the library's stars"),
    ("EBVEXCE", "ebv_excess_err", "[mag] standard deviation"),
)


def _cards(star: Star) -> list[tuple[str, Any, str]]:
    from bayesspec import __version__

    row = star.row
    cards = [
        ("OBJECT", _ascii(star.name), "star"),
        ("CREATOR", f"bayesspec {__version__}", "software"),
        ("MODEL", _ascii(star.model_name), "bundle"),
        ("MODELVER", _ascii(star.model_version), "version of the bundle"),
        ("METHOD", star.method, "inference"),
        ("CLASS", str(row["class"]), "best class"),
        ("CLASSP", float(row["probability"]), "probability of CLASS"),
        *(
            (f"P_{name.upper()}"[:8], float(p), f"probability of {name}")
            for name, p in zip(star.classes, star.class_probabilities, strict=True)
        ),
        *((f"Z{k}", float(z), "latent") for k, z in enumerate(star.z, start=1)),
        *((key, float(row[name]), comment) for key, name, comment in _BEYOND_THE_LIBRARY if name in row),
        ("SCALE", float(row["scale"]), "mean |FLUX| over the grid"),
        ("NEXP", int(row["exposures"]), "exposures with an observed pixel"),
    ]
    cards += [
        *(
            (f"SCALE{k}", float(factor), f"flux of exposure {k} relative to FLUX")
            for k, factor in enumerate(star.scale, start=1)
        ),
        ("CHI2", float(row["chi2"]), "mean square of whitened noise, 1 = as modelled"),
        ("OUTLIER", float(row["outlier_score"]), "probability to look as strange; small = outlier"),
        ("OBSFRAC", float(row["observed_fraction"]), "share of the grid observed"),
        ("USEDFRAC", float(row["used_fraction"]), "share of likelihood terms used"),
        ("LOGDENS", float(row["log_density"]), "log p(y, z, C)"),
    ]
    cards.append(("FLAGS", int(row["flags"]), "bits, 0 = nothing to look at"))
    cards += [(f"WARN{k}", _ascii(note), "") for k, note in enumerate(star.warnings, start=1)]
    # FITS has no number that is not finite; an undefined value is what it has instead.
    return [
        (key, None if isinstance(value, float) and not np.isfinite(value) else value, comment)
        for key, value, comment in cards
    ]


def _column(name: str, values: u.Quantity) -> fits.Column:
    numbers, spelled = _in_fits(values)
    return fits.Column(name, "D", unit=spelled, array=numbers)


def _in_fits(values: u.Quantity) -> tuple[NDArray[np.float64], str]:
    # FITS has powers of ten only, so any other factor goes into the values; a few units it lacks.
    unit, spelled = values.unit, values.unit.to_string()
    for candidate in (unit, u.CompositeUnit(1, unit.bases, unit.powers)):
        with suppress(ValueError):
            unit, spelled = candidate, candidate.to_string("fits")
            break
    return values.to_value(unit).astype(float), spelled


def _ascii(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text).encode("ascii", "replace").decode()
