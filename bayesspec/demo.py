"""A demonstration with known truth: a real star, with noise drawn from the model."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from astropy.io import fits
from numpy.typing import NDArray

from .distributions import NoiseFlow, RobustNoiseFlow
from .exceptions import BayesspecError
from .grid import WavelengthGrid, mean_exposure
from .inference.denoise import denoise
from .io import read
from .io.bits import SPPIXMASK
from .model import StellarModel
from .nn import NoiseNetwork
from .observation import Observation
from .results.plotting import save_figure
from .results.products import SUMMARY, ProductWriter, written
from .results.result import Result
from .runtime import seeded

__all__ = ["Demonstration", "example_star", "noisy_exposures", "run_demo", "to_sdss"]

EXPOSURES = 3
NOISE = 0.1
"""Noise of an exposure at a typical wavelength, in units of the mean flux."""

FLUX = 20.0
"""Mean flux of the star, 1e-17 erg/s/cm2/Angstrom (bright for SDSS, where fainter stars have S/N 10)."""

GAP = (6900.0, 7266.0)
"""Angstrom; no exposure has data in these 150 pixels."""

OVERLAP = (5850.0, 6350.0)
"""Angstrom; both cameras cover this range."""

COSMIC_RAYS = ((0, 5400.0, False), (1, 7900.0, True))
"""Exposure, wavelength in Angstrom, and whether the pipeline found and masked it."""


@dataclass(frozen=True, eq=False)
class Demonstration:
    """The results of the demonstration.

    Arguments:
        result: The result for the star.
        truth: The star without noise, (D,), in the result's flux unit.
        losses: Mean squared differences of input and denoised spectrum from the truth at mean |flux| = 1.
        files: The files that were written.
    """

    result: Result
    truth: NDArray[np.float64]
    losses: dict[str, float]
    files: dict[str, Path]


def run_demo(
    folder: str | Path, model: StellarModel, *, seed: int = 0, overwrite: bool = False
) -> Demonstration:
    """Write a noisy SDSS file of the example star, denoise it like any other file, compare with the truth.

    Raises:
        BayesspecError: if the folder has a demonstration and `overwrite` is False, or cannot be written to.
    """
    folder = Path(folder)
    file = folder / "spec-demo.fits"
    writer = ProductWriter(folder, [str(file)], figures=True, overwrite=overwrite)
    # A summary that the writer accepts is from a failed run, and so is the file.
    if file.exists() and not (overwrite or (folder / SUMMARY).exists()):
        raise BayesspecError(f"{file}: there already; --overwrite (overwrite=True) replaces it")
    writer.write_summary()

    truth = on_grid(example_star(), model.grid)
    flux, ivar, bits = noisy_exposures(truth, model, seed=seed)
    with written(file) as part:
        to_sdss(model.grid, flux * FLUX, ivar / FLUX**2, bits).writeto(part, overwrite=True)

    star = denoise(read(file, exposures="individual"), model=model, method="map", seed=seed)
    writer.add(0, star.star())
    writer.write_summary()
    figure = writer.folder / f"{writer.stems[0]}.png"
    with written(figure) as part:
        save_figure(star.plot(truth=truth * FLUX), part)

    error = (star.flux[0] / FLUX - truth) ** 2
    observed, gap = star.observed, _between(model.grid.wavelength, *GAP)
    seen = ~observed.mask[0]
    losses = {
        "one exposure": float(np.mean((flux - truth)[bits == 0] ** 2)),
        "mean of the exposures": float(np.mean((observed.flux[0] / FLUX - truth)[seen] ** 2)),
        "denoised": float(error.mean()),
        "denoised, in the gap": float(error[gap].mean()),
    }
    files = {
        "input": file,
        "figure": figure,
        **{
            "spectrum": writer.folder / f"{writer.stems[0]}.denoised.fits",
            "summary": writer.folder / SUMMARY,
        },
    }
    return Demonstration(star, truth * FLUX, losses, files)


def example_star() -> Observation:
    """The M dwarf that ships with the package, see `examples/README.md`.

    Example:
        >>> example_star()
        <Observation 'MaStarHC 22': 1 exposure, 3900-9099 Angstrom, 100% observed, noise unknown>
    """
    path = resources.files("bayesspec") / "examples" / "mastar-m-star.fits"
    with path.open("rb") as file, fits.open(file) as hdus:
        header, flux = hdus[0].header, hdus[0].data.astype(float)
    wavelength = 10 ** (header["CRVAL1"] + header["CDELT1"] * np.arange(len(flux)))
    return Observation(wavelength, flux, name=header["OBJECT"])


def on_grid(star: Observation, grid: WavelengthGrid) -> NDArray[np.float64]:
    """A complete spectrum on the model's grid at mean |flux| = 1, (D,)."""
    flux = star.rebin(grid).flux[0]
    return flux / np.abs(flux).mean()


def noisy_exposures(
    truth: NDArray[np.float64], model: StellarModel, *, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
    """Exposures of a star with noise drawn from the model's flow: flux, ivar and mask bits, each (E, D).

    There are two cosmic rays; the one that the pipeline found is flagged FULLREJECT. The gap is flagged
    NODATA.
    """
    wavelength = model.grid.wavelength
    with seeded(seed):
        flow = _noise(torch.as_tensor(truth, dtype=torch.float32), model)
        draws = flow.sample((EXPOSURES + 256,)).numpy().astype(float)
    flux, sigma = draws[:EXPOSURES], np.std(draws[EXPOSURES:] - truth, axis=0)
    ivar, bits = np.tile(sigma**-2.0, (EXPOSURES, 1)), np.zeros(flux.shape, np.int32)

    for exposure, at, found in COSMIC_RAYS:
        hit = _between(wavelength, at, at + 8)
        flux[exposure, hit] += 12 * sigma[hit]
        if found:
            bits[exposure, hit] = 1 << SPPIXMASK["FULLREJECT"]
    gap = _between(wavelength, *GAP)
    flux[:, gap], ivar[:, gap], bits[:, gap] = 0.0, 0.0, 1 << SPPIXMASK["NODATA"]
    return flux, ivar, bits


def _noise(loc: torch.Tensor, model: StellarModel) -> NoiseFlow | RobustNoiseFlow:
    """Noise around a spectrum, at the model's own level, or at `NOISE` if the model takes a level."""
    if isinstance(model.noise, NoiseNetwork):
        return NoiseFlow(loc, model.noise)
    return RobustNoiseFlow(loc, model.noise, NOISE * model.noise.reference)


def to_sdss(
    grid: WavelengthGrid, flux: NDArray[np.float64], ivar: NDArray[np.float64], bits: NDArray[np.int32]
) -> fits.HDUList:
    """An SDSS full file of exposures (E, D): coadd, catalogue row, lines, and a blue and a red frame of each.

    The pixels are those of the grid, so that reading the file needs no rebinning. Where the cameras overlap,
    each has half of the inverse variance.
    """
    loglam, wavelength = np.log10(grid.wavelength), grid.wavelength
    good = np.where(bits == 0, ivar, 0.0)
    mean, total, _ = mean_exposure(flux, good, good <= 0)
    masks = {"and_mask": np.bitwise_and.reduce(bits), "or_mask": np.bitwise_or.reduce(bits)}
    hdus = [
        fits.PrimaryHDU(header=fits.Header([("OBJECT", "bayesspec demonstration"), ("NEXP", 2 * len(flux))])),
        _table("COADD", {"flux": mean, "loglam": loglam, "ivar": total, **masks}),
        _table("SPALL", {"CLASS": np.array(["STAR"]), "SUBCLASS": np.array(["M"])}),
        _table("SPZLINE", {"LINENAME": np.array(["H_alpha"]), "LINEWAVE": np.array([6564.61])}),
    ]
    arms = {"B1": wavelength <= OVERLAP[1], "R1": wavelength >= OVERLAP[0]}
    share = np.where(_between(wavelength, *OVERLAP), 0.5, 1.0)
    for camera, sees in arms.items():
        for e, row in enumerate(zip(flux, ivar * share, bits, strict=True)):
            part = dict(zip(("flux", "ivar", "mask"), (column[sees] for column in row), strict=True))
            hdus.append(_table(f"{camera}-{e + 1:08d}", {"loglam": loglam[sees], **part}))
    return fits.HDUList(hdus)


def _table(name: str, columns: dict[str, NDArray]) -> fits.BinTableHDU:
    formats = {"f": "D", "i": "J", "U": "16A"}
    return fits.BinTableHDU.from_columns(
        [fits.Column(key, formats[values.dtype.kind], array=values) for key, values in columns.items()],
        name=name,
    )


def _between(wavelength: NDArray[np.float64], low: float, high: float) -> NDArray[np.bool_]:
    return (wavelength >= low) & (wavelength <= high)
