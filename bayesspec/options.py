"""Shared by several commands: options, loading a model, and messages."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .exceptions import BayesspecError

if TYPE_CHECKING:
    from .model import StellarModel

__all__ = ["LARGEST_SEED", "Overwrite", "Seed", "expand", "load", "say"]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the products of an earlier run.")]
LARGEST_SEED = 2**32 - 1  # of numpy and Pyro
Seed = Annotated[
    int,
    typer.Option(min=0, max=LARGEST_SEED, help="Random seed; the same seed gives the same products."),
]


def load(model: str, device: str) -> StellarModel:
    """A shipped model, or a bundle in a folder.

    Raises:
        BayesspecError: as `load_model`, and if the device cannot be used.
    """
    from .bundle import load_model

    try:
        return load_model(model, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's errors if there is no such device
        raise BayesspecError(f"device {device!r} cannot be used ({str(error).splitlines()[0]})") from error


def expand(patterns: list[str]) -> list[Path]:
    """The FITS files in folders, and the files that match patterns.

    Raises:
        BayesspecError: if a folder has no FITS file, or a pattern no match.
    """
    files: list[Path] = []
    for pattern in patterns:
        folder = Path(pattern).is_dir()
        found = sorted(glob.glob(f"{glob.escape(pattern)}/*.fits*" if folder else pattern))
        if not found:
            raise BayesspecError(f"--noise {pattern}: no such file, and no file matches")
        files += map(Path, found)
    return files


def say(message: str) -> None:
    """One line on stderr."""
    typer.echo(message, err=True)
