"""What inference returns: clean spectra and classes, in the units of the input."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
from astropy import units as u
from astropy.table import MaskedColumn, Table
from numpy.typing import NDArray

from bayesspec.exceptions import BayesspecError, StarError
from bayesspec.grid import Rebinned, WavelengthGrid, mean_exposure
from bayesspec.observation import printable

from .figures import Figures
from .star import Failure, Star, median_snr

if TYPE_CHECKING:
    import torch
    from arviz import InferenceData
    from specutils import Spectrum
    from xarray import DataTree

    from bayesspec.batch import ObservationBatch
    from bayesspec.inference.draws import Draws
    from bayesspec.model import StellarModel

    from .spectra import Posterior

__all__ = ["Result"]

Array = NDArray[np.floating[Any]]

INTERVAL_DRAWS = 1000
"""Number of draws of equal weight whose percentiles are the ends of an interval."""

LINE_DRAWS = 100
"""Number of draws of equal weight for the standard deviations of equivalent widths."""

_TUPLES = "names", "units", "facts", "warnings"
"""Fields with an entry per star that are tuples, not arrays."""


@dataclass(frozen=True, eq=False)
class Result(Figures):
    """N denoised stars: `res[i]` is one of them, `len(res)` is N.

    Attributes are on the grid and in the units of the model; properties and methods use the units of the
    input. Exposure e of a star is `scale[e] * (model_flux + noise)`, times `exposure_unit[e]` in flux units.

    Arguments:
        method: Name of the inference method.
        model_name: Name of the model's bundle.
        grid: Wavelength grid of the model.
        classes: Names of the K classes.
        names: Names of the stars.
        units: Flux unit of each star's input.
        model_flux: Clean spectra, (N, D), in units of their mean |flux|.
        unit_flux: The flux that corresponds to 1, (N,), in the star's unit.
        z: Latents, (N, L).
        class_probabilities: (N, K), rows sum to 1: p(C | y), the mean of p(C | z) over the posterior of z;
            for `map`, p(C | z) at the maximum.
        best_class: Index of the most probable class, (N,); for `map` that of the joint maximum, eq. (7).
        log_density: log p(y, z, C) at the latents and best class, (N,); with draws, their mean log p(y, z).
        scale: Scale of each exposure relative to its own mean |flux|, (N, E); 1 where it is known.
        free_scale: True where the scale was inferred, (N, E).
        exposure_unit: The flux by which each exposure was divided, (N, E), in the star's unit.
        observed_flux: Exposures on the model's grid, (N, E, D), divided by `exposure_unit`; 0 where masked.
        observed_ivar: Their inverse variance, (N, E, D); 0 where masked or unknown.
        observed_mask: True = bad, (N, E, D); all True for exposures that a star does not have.
        chi2: Mean square of the whitened noise over the terms used, (N,); 1 if the noise is as modelled.
        used_fraction: Fraction of the exposures' pixels that have a term in the likelihood, (N,).
        observed_fraction: Fraction of the grid that at least one exposure observed, (N,).
        outlier_score: Probability that a star of its class is as unusual, (N,); small = outlier. Without a
            residual term it is the fraction of prior draws of the class whose z are less probable than this
            one's (with posterior draws, the mean of this). With one it is the probability that the smallest
            of four such numbers is as small: for z and the amplitude of residuals; for `chi2`; for the
            strength of the signal; and for the strength of lines and bands.
        failures: Inputs without a result.
        facts: Facts from the file of each star, by column of the table, see `bayesspec.results.facts`.
        flags: Warnings as bits, (N,), see `bayesspec.results.diagnostics.Flag`.
        warnings: For each star, the same in words.
        model_version: Version of the bundle: the beginning of a hash of weights, grid, classes, architecture.
        model_flux_std: Standard deviation of `model_flux`, (N, D); None if the method gives none.
        draws: Draws from the posterior; None if the method gives none.
        model: The model, which decodes the draws.
        x: Latents of velocity and throughput, (N, P), see `Passage`; P = 0 for a model without a passage.
        passage: Their physical values, (N, P): km/s, magnitudes, log factors on the flux.
        passage_std: Their standard deviations, (N, P); None if the method gives none.
        model_rest_flux: Spectra at rest without dust and flux-calibration error, (N, D), as `model_flux`.
        w: Latents of the residual term, (N, R); R = 0 for a model without one.
        residual_share: Fraction of the squared difference between observed flux and G(z) that the model
            attributes to the star, not to noise, (N,); 0 for a model without residual term.

    Example:
        >>> import bayesspec, numpy as np
        >>> star = bayesspec.Observation(np.linspace(3900, 9100, 4000), np.ones(4000), name="flat")
        >>> res = bayesspec.denoise(star)
        >>> len(res), res.flux.shape, res.class_probabilities.shape
        (1, (1, 2048), (1, 10))
    """

    method: str
    model_name: str
    grid: WavelengthGrid
    classes: tuple[str, ...]
    names: tuple[str, ...]
    units: tuple[u.UnitBase, ...]
    model_flux: Array
    unit_flux: Array
    z: Array
    class_probabilities: Array
    best_class: NDArray[np.int64]
    log_density: Array
    scale: Array
    free_scale: NDArray[np.bool_]
    exposure_unit: Array
    observed_flux: Array
    observed_ivar: Array
    observed_mask: NDArray[np.bool_]
    chi2: Array
    used_fraction: Array
    observed_fraction: Array
    outlier_score: Array
    failures: tuple[Failure, ...] = ()
    facts: tuple[Mapping[str, Any], ...] = ()
    flags: NDArray[np.int64] | None = None
    warnings: tuple[tuple[str, ...], ...] = ()
    model_version: str = ""
    model_flux_std: Array | None = None
    draws: Draws | None = None
    model: StellarModel | None = None
    w: Array | None = None
    x: Array | None = None
    passage: Array | None = None
    passage_std: Array | None = None
    model_rest_flux: Array | None = None
    residual_share: Array | None = None

    def __post_init__(self) -> None:
        if not self.warnings:
            object.__setattr__(self, "warnings", ((),) * len(self))
        if not self.facts:
            object.__setattr__(self, "facts", ({},) * len(self))
        if self.flags is None:
            object.__setattr__(self, "flags", np.zeros(len(self), dtype=np.int64))
        object.__setattr__(self, "failures", tuple(Failure(*failure) for failure in self.failures))
        for name in (*self._arrays(), *_TUPLES):
            if (rows := len(getattr(self, name))) != len(self):
                raise ValueError(f"{name} has {rows} rows for {len(self)} stars")

    def _arrays(self) -> dict[str, NDArray[Any]]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    @property
    def wavelength(self) -> NDArray[np.float64]:
        """Wavelengths of the spectra, (D,), vacuum Angstrom."""
        return self.grid.wavelength

    @property
    def latents(self) -> Array:
        """z, x and w, (N, L + P + R)."""
        return np.concatenate([part for part in (self.z, self.x, self.w) if part is not None], axis=-1)

    @property
    def flux(self) -> NDArray[np.float64]:
        """Clean spectra, (N, D), each in its input's flux unit."""
        return self.model_flux * self._unit

    @property
    def rest_flux(self) -> NDArray[np.float64] | None:
        """The star at rest, without dust and flux-calibration error, (N, D), in its input's flux unit."""
        return None if self.model_rest_flux is None else self.model_rest_flux * self._unit

    @property
    def flux_std(self) -> NDArray[np.float64] | None:
        """Posterior standard deviation of `flux`, (N, D); None for `map`."""
        return None if self.model_flux_std is None else self.model_flux_std * self._unit

    @property
    def _unit(self) -> NDArray[np.float64]:
        """`unit_flux`, (N, 1), in double precision: inverse variances of a flux of 1e-20 overflow single."""
        return self.unit_flux[:, None].astype(float)

    def interval(self, level: float = 0.9) -> tuple[Array, Array]:
        """Lower and upper ends of the central posterior interval of `flux`, each (N, D).

        Raises:
            BayesspecError: if `level` is not between 0 and 1; for `map`, which is a point estimate.
        """

        from .spectra import flux_draws

        if not (isinstance(level, Real) and 0 < level < 1):
            raise BayesspecError(f"the level of an interval is between 0 and 1, such as 0.9, not {level!r}")
        tail = 50 * (1 - level)
        lacking = f"there is no {level:.0%} interval"
        posteriors = [self._posterior(i, lacking) for i in range(len(self))]
        ends = [
            np.percentile(flux_draws(star, INTERVAL_DRAWS), (tail, 100 - tail), axis=0) for star in posteriors
        ]
        lower, upper = np.stack(ends, axis=1)
        return lower, upper

    def flux_draws(self, count: int = INTERVAL_DRAWS, i: SupportsIndex = 0, *, seed: int = 0) -> Array:
        """Posterior draws of the clean spectrum of star i, with equal weight, (count, D), in its flux unit.

        Raises:
            BayesspecError: for `map`, which is a point estimate.
        """
        from .spectra import flux_draws

        return flux_draws(self._posterior(i, "there are no draws"), count, seed)

    def to_arviz(self, i: SupportsIndex = 0) -> InferenceData | DataTree:
        """Posterior of star i for ArviZ: an `InferenceData` of ArviZ 0.x, a `DataTree` of ArviZ 1.x.

        Groups, dimensions and coordinates: see `bayesspec.results.arviz.to_arviz`. Weighted draws are
        resampled to as many of equal weight, in four chains; the attribute `draws` says so.

        Raises:
            BayesspecError: for `map`, which is a point estimate.
        """
        from .arviz import to_arviz
        from .spectra import arviz_input

        star = self._posterior(i, "there is nothing for ArviZ")
        attrs = {"method": self.method, "model": self.model_name, "model_version": self.model_version}
        return to_arviz(arviz_input(star, attrs=attrs))

    def _posterior(self, i: SupportsIndex, consequence: str) -> Posterior:
        from .spectra import Posterior

        star = self[operator.index(i)]
        if star.draws is None or star.model is None:
            raise BayesspecError(
                f"method={self.method!r} gives the point of highest density, not a posterior, so "
                f"{consequence}; denoise with uncertainty=True, which is method='importance'"
            )
        logits = star.model.class_logits
        batch = star.batch(logits.device, logits.dtype)
        return Posterior(
            star.model, batch, star.draws, star.latents, star.scale, star.model_flux, star.unit_flux
        )

    def batch(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> ObservationBatch:
        """The observations as input of the model, in single precision by default."""
        from bayesspec.batch import ObservationBatch

        exposures = self.observed_flux, self.observed_ivar, self.observed_mask
        return ObservationBatch.from_arrays(
            *exposures, self.exposure_unit, self.free_scale, names=self.names, device=device, dtype=dtype
        )

    @cached_property
    def observed(self) -> Rebinned:
        """Mean exposure of each star: flux, ivar, mask (True = no exposure observed the pixel), each (N, D).

        Exposures are scaled to the star and averaged by inverse variance. If an exposure has none, all have
        equal weight and the ivar is 0. In the star's flux unit, 0 where the mask is True.
        """
        scale = np.where(self.scale > 0, self.scale, 1.0).astype(float)[..., None]
        parts = self.observed_flux / scale, self.observed_ivar * scale**2, self.observed_mask
        flux, ivar, mask = mean_exposure(*parts)
        return Rebinned(flux * self._unit, ivar / self._unit**2, mask)

    @property
    def table(self) -> Table:
        """One row per star, with the main results. `full_table` also has the diagnostics.

        Columns: name; facts from the file, such as ra, dec and survey_class; snr, the median flux / sigma of
        the observed pixels; class and probability of the best class; velocity_offset and ebv_excess relative
        to the library stars, with errors if there are draws; quality, which is "ok" or names the flags.
        Numbers are shown and written with a sensible number of digits.
        """
        from .table import FORMATS

        full = self.full_table
        last = full.colnames.index("quality") + 1
        table = full[full.colnames[:last]]
        for name in FORMATS.keys() & set(table.colnames):
            table[name].info.format = FORMATS[name]
        return table

    @property
    def full_table(self) -> Table:
        """One row per star, with all quantities in full precision.

        Columns: those of `table`; scale and unit, the mean |flux| of the clean spectrum over the grid;
        exposures, the number with an observed pixel; chi2, outlier_score, observed_fraction, used_fraction,
        log_density, residual_share, see `Result`; diagnostics of the draws, see `Draws`; flags and warnings,
        as bits and in words.
        """
        return Table(self._columns(), meta={"method": self.method, "model": self.model_name})

    def equivalent_widths(self) -> Table:
        """Equivalent widths of strong lines in the star's rest frame, Angstrom, positive in absorption.

        One row per star: name, and for each of `bayesspec.results.lines.LINES` a column such as ew_h_alpha,
        with its posterior standard deviation in ew_h_alpha_err. For `map`, which has no draws, a line is
        measured only if nine tenths of it and of its continuum were observed. Masked if not measured.
        """
        names = np.array(self.names, dtype=str)
        return Table({"name": names, **self._line_columns()}, masked=True)

    def _columns(self) -> dict[str, Any]:
        """Columns of `full_table`."""
        from .diagnostics import quality
        from .table import fact_columns, passage_columns

        rows = np.arange(len(self))
        return {
            "name": np.array(self.names, dtype=str),
            **fact_columns(self.facts),
            "snr": np.array([median_snr(*parts) for parts in zip(*self.observed, strict=True)], dtype=float),
            "class": np.array(self.classes, dtype=str)[self.best_class],
            "probability": self.class_probabilities[rows, self.best_class],
            **passage_columns(self.passage, self.passage_std),
            "quality": np.array([quality(flags) for flags in np.asarray(self.flags).tolist()], dtype=str),
            "scale": np.abs(self.flux).mean(-1),
            "unit": np.array([unit.to_string() for unit in self.units], dtype=str),
            "exposures": (~self.observed_mask).any(-1).sum(-1),
            "chi2": self.chi2,
            "outlier_score": self.outlier_score,
            "observed_fraction": self.observed_fraction,
            "used_fraction": self.used_fraction,
            "log_density": self.log_density,
            **({} if self.residual_share is None else {"residual_share": self.residual_share}),
            **({} if self.draws is None else self.draws.diagnostics),
            "flags": self.flags,
            "warnings": np.array(["; ".join(notes) for notes in self.warnings], dtype=str),
        }

    def _line_columns(self) -> dict[str, MaskedColumn]:
        """Columns of `equivalent_widths`."""
        from .table import line_columns

        draws: list[Array] = [self.flux[[i]] for i in range(len(self))]
        seen = ~self.observed.mask
        if self.draws is not None:
            draws = [self.flux_draws(LINE_DRAWS, i) for i in range(len(self))]
            seen = np.ones_like(seen)
        velocity: Array = np.zeros(len(self))
        if self.passage is not None and self.passage.shape[-1]:
            velocity = self.passage[:, 0]
        return line_columns(self.grid, draws, seen, velocity)

    def star(self, i: SupportsIndex = 0) -> Star:
        """Star i as plain arrays in the unit of its input, as in files and figures."""
        lines = self[i]._line_columns().items()
        widths = {name: float(column[0]) for name, column in lines if not column.mask[0]}
        return replace(self._without_lines(i), lines=widths)

    def _without_lines(self, i: SupportsIndex) -> Star:
        """Star i without equivalent widths, whose draws take longer than a figure."""
        one = self[operator.index(i)]
        seen = (~one.observed_mask[0]).any(-1)
        return Star(
            name=one.names[0],
            unit=one.units[0],
            grid=self.grid,
            flux=one.flux[0],
            flux_std=None if one.flux_std is None else one.flux_std[0],
            observed=Rebinned(*(part[0] for part in one.observed)),
            scale=(one.scale[0] * one.exposure_unit[0].astype(float) / one.unit_flux[0])[seen],
            z=one.z[0],
            classes=self.classes,
            class_probabilities=one.class_probabilities[0],
            row={name: column[0] for name, column in one._columns().items()},
            lines={},
            warnings=one.warnings[0],
            method=self.method,
            model_name=self.model_name,
            model_version=self.model_version,
        )

    def to_spectrum(self, i: SupportsIndex = 0) -> Spectrum:
        """Star i as a specutils `Spectrum`, with the standard deviation if the method gives one.

        Its mask is True where no exposure observed the pixel and the flux is the model's prediction. `meta`
        is the star's row of `full_table`, including `warnings`.
        """
        from astropy.nddata import StdDevUncertainty
        from specutils import Spectrum

        star = self._without_lines(i)
        std = star.flux_std
        return Spectrum(
            spectral_axis=self.wavelength * u.AA,
            flux=star.flux * star.unit,
            uncertainty=None if std is None else StdDevUncertainty(std * star.unit),
            mask=star.observed.mask,
            meta=star.row,
        )

    def write(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a FITS table per star and `summary.ecsv`, failures included, into the folder `path`.

        Raises:
            BayesspecError: if one of these files exists and `overwrite` is False.
        """
        from .products import write_products

        failed = {failure.position: failure for failure in self.failures}
        stars = map(self.star, range(len(self)))
        rows = [failed.get(position) or next(stars) for position in range(len(self) + len(failed))]
        return write_products(rows, path, overwrite=overwrite)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Result]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: SupportsIndex | slice | NDArray[Any]) -> Result:
        if isinstance(index, slice):
            rows = np.arange(len(self))[index]
        else:
            try:
                rows = np.atleast_1d(np.arange(len(self))[np.asarray(index)])
            except IndexError:
                raise StarError(f"no star {index}: the result has {len(self)}, counted from 0") from None
        changed: dict[str, Any] = {name: value[rows] for name, value in self._arrays().items()}
        changed |= {n: tuple(getattr(self, n)[row] for row in rows) for n in _TUPLES}
        draws = None if self.draws is None else self.draws.select(rows)
        return replace(self, **changed, draws=draws, failures=())

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        plural = "s" * (len(self) != 1)
        head = f"<Result: {len(self)} star{plural} by {self.method} with {self.model_name}{failed}"
        rows = [
            f"  {printable(row['name'])}: {row['class']} ({row['probability']:.2f})"
            + "".join(f"; {note}" for note in notes)
            for row, notes in zip(self[:10].full_table, self.warnings[:10], strict=True)
        ]
        flagged = sum(map(bool, self.warnings[10:]))
        more = f", {flagged} of them with warnings" if flagged else ""
        rows += [f"  ... {len(self) - 10} more{more}"] if len(self) > 10 else []
        return "\n".join([head, *rows]) + ">"
