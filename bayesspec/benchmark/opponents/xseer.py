"""The published `xseer` network, evaluated with numpy from its published weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bayesspec.exceptions import BayesspecError
from bayesspec.grid import WavelengthGrid, overlap_matrix

from .base import Array, Baseline, Mask, fill_gaps
from .pairs import Pairs, search

__all__ = ["Xseer", "covers", "published_layers"]

PIXELS = 4000
WAVELENGTH = 10 ** (3.5725 + 1e-4 * np.arange(PIXELS))
"""The network's pixels: SDSS's, vacuum Angstrom."""

COVERAGE = (3800.0, 9220.0)
"""Range of an SDSS spectrum in Angstrom; in the network's training data the rest of the input is 0."""

EDGE = 25
"""Number of pixels whose median extends a spectrum beyond the grid."""

UNITS = (100.0, 1.0, 3.0, 10.0, 30.0, 1000.0)

Layer = tuple[NDArray[np.float32], NDArray[np.float32]]


def published_layers() -> list[Layer]:
    """Kernels and biases of the three dense layers in the installed package `xseer`.

    The package itself is not imported, because it would load TensorFlow. Its licence is MIT.

    References:
        | Mallarapu 2019, xseer 0.8, on PyPI

    Raises:
        BayesspecError: if it is not installed, or its weights are not those of version 0.8.
    """
    import h5py

    found = find_spec("xseer")
    if found is None or not found.submodule_search_locations:
        raise BayesspecError("the weights of xseer are not installed: pip install --no-deps xseer")
    path = Path(found.submodule_search_locations[0]) / "xseer.h5"
    try:
        with h5py.File(path) as file:
            layers = [file["model_weights"][name][name] for name in ("dense", "dense_1", "dense_2")]
            return [(layer["kernel:0"][()], layer["bias:0"][()]) for layer in layers]
    except (OSError, KeyError) as error:
        raise BayesspecError(f"{path}: not the weights of xseer 0.8 ({error})") from error


def covers(grid: WavelengthGrid) -> bool:
    """Whether the network's pixels cover a grid.

    Example:
        >>> covers(WavelengthGrid()), covers(WavelengthGrid(3600, 9000))
        (True, False)
    """
    return bool(grid.edges[0] >= WAVELENGTH[0] and grid.edges[-1] <= WAVELENGTH[-1])


class Xseer(Baseline):
    """Three dense layers (4000, 400, 400, 4000) with ELU, published with their weights in 2019.

    The spectrum is interpolated to the network's SDSS pixels, its gaps too. Beyond the grid, where the
    network expects flux, it is extended by a constant, which gives a third of the loss with zeros. The flux
    unit of the training data is not documented, so the one that does best on validation pairs is used. The
    network is not retrained.

    Arguments:
        layers: Kernel and bias of each layer.
        grid: Wavelength grid of the spectra.
        unit: Factor on spectra at mean |flux| = 1.

    Raises:
        BayesspecError: if the grid extends beyond the network's 3737-9384 Angstrom.
    """

    name = "xseer"

    def __init__(self, layers: Sequence[Layer], grid: WavelengthGrid, *, unit: float = UNITS[0]) -> None:
        self.layers, self.grid, self.unit, self.size = list(layers), grid, unit, grid.size
        if not covers(grid):
            low, high = WAVELENGTH[[0, -1]]
            raise BayesspecError(
                f"xseer covers {low:.0f}-{high:.0f} Angstrom, not {grid.start:g}-{grid.stop:g}"
            )
        blue, red = COVERAGE
        self._seen = (blue <= WAVELENGTH) & (red >= WAVELENGTH)
        self._back = overlap_matrix(WAVELENGTH, grid)

    @classmethod
    def tune(cls, layers: Sequence[Layer], grid: WavelengthGrid, validation: Pairs) -> Self:
        """Choose the unit of flux on validation pairs."""
        return cls(
            layers, grid, **search(lambda unit: cls(layers, grid, unit=unit), {"unit": UNITS}, validation)
        )

    def _denoise(self, flux: Array, ivar: Array, mask: Mask) -> Array:
        filled = fill_gaps(flux, mask)
        ends = [np.median(part, axis=-1) for part in (filled[:, :EDGE], filled[:, -EDGE:])]
        x: NDArray = np.zeros((len(flux), PIXELS))
        for row, (spectrum, blue, red) in enumerate(zip(filled, *ends, strict=True)):
            native = np.interp(WAVELENGTH[self._seen], self.grid.wavelength, spectrum, blue, red)
            x[row, self._seen] = self.unit * native

        for layer, (kernel, bias) in enumerate(self.layers):
            x = (np.where(x > 0, x, np.expm1(np.minimum(x, 0))) if layer else x) @ kernel + bias
        return (self._back @ x.T).T / np.diff(self.grid.edges) / self.unit

    def _state(self) -> tuple[dict[str, NDArray], dict[str, Any]]:
        arrays: dict[str, NDArray] = {}
        for layer, (kernel, bias) in enumerate(self.layers):
            arrays |= {f"kernel{layer}": kernel, f"bias{layer}": bias}
        return arrays, {"grid": self.grid.to_dict(), "unit": self.unit}

    @classmethod
    def _from_state(cls, arrays: Mapping[str, NDArray], config: Mapping[str, Any]) -> Self:
        layers = [(arrays[f"kernel{layer}"], arrays[f"bias{layer}"]) for layer in range(len(arrays) // 2)]
        return cls(layers, WavelengthGrid(**config["grid"]), unit=config["unit"])
