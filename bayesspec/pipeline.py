"""Files in, products out, a chunk at a time: what `bayesspec denoise` and the demonstration run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from .exceptions import BayesspecError
from .grid import WavelengthGrid
from .inference.denoise import denoise
from .io import read
from .model import StellarModel
from .observation import Gridded, printable
from .results.products import ProductWriter
from .results.result import Result
from .results.star import Failure

__all__ = ["denoise_files"]


def denoise_files(
    files: Sequence[str | Path],
    writer: ProductWriter,
    model: StellarModel,
    *,
    method: str = "map",
    exposures: Literal["coadd", "individual"] = "coadd",
    strict: bool = False,
    seed: int = 0,
    batch_size: int = 64,
) -> Iterator[Result | Failure]:
    """Read, denoise and write every file; a file that cannot be used is noted and the rest goes on.

    No more than `batch_size` stars are in memory. The summary is there from the start and written anew after
    every batch; one of thousands of rows as often as a tenth of the time allows. So a run that is killed
    leaves one that knows of all products but the last.

    Arguments:
        files: One star each.
        writer: For the products; made with a name for each file.
        model: See `load_model`.
        method: See `denoise`.
        exposures: "coadd", or "individual" for the single exposures of an SDSS full file.
        strict: Take doubtful pixels for missing too, see `read`.
        seed: Of everything random.
        batch_size: Stars in memory at once.

    Yields:
        For every file, in order, the result of its star or why there is none.

    Raises:
        BayesspecError: if a product or the summary cannot be written.
    """
    writer.write_summary()
    try:
        for first in range(0, len(files), batch_size):
            chunk = files[first : first + batch_size]
            inputs = [
                _read(file, position, model.grid, exposures, strict)
                for position, file in enumerate(chunk, start=first)
            ]
            stars = [star for star in inputs if isinstance(star, Gridded)]
            results = iter(denoise(stars, model=model, method=method, seed=seed)) if stars else iter(())
            for position, star in enumerate(inputs, start=first):
                if isinstance(star, Failure):
                    writer.fail(position, star.reason)
                    yield star
                else:
                    result = next(results)
                    writer.add(position, result.star())
                    yield result
            writer.update_summary()
    finally:
        writer.write_summary()


def _read(
    file: str | Path,
    position: int,
    grid: WavelengthGrid,
    exposures: Literal["coadd", "individual"],
    strict: bool,
) -> Gridded | Failure:
    try:
        return read(file, exposures=exposures, strict=strict).on_grid(grid)
    except BayesspecError as error:
        name = printable(str(file))
        return Failure(position, name, " ".join(str(error).removeprefix(f"{name}: ").split()))
