"""The split into training, validation and test data, by a hash of star or epoch: it never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["Split", "near_duplicates", "split_by_hash"]

Split = Literal["train", "validation", "test"]


def split_by_hash(
    identities: Iterable[str], *, validation: float = 0.1, test: float = 0.15, salt: str = ""
) -> NDArray[np.str_]:
    """Assign each identity to train, validation or test by its SHA-256, never by its row.

    A star is on the same side in every table, on every machine, and in any order.

    Arguments:
        identities: Star names, or epoch names (plate-mjd).
        validation: Fraction of the identities for validation, i.e. for choices in training.
        test: Fraction of the identities that are used only for measurements.
        salt: A different text gives a different split.

    Example:
        >>> [str(side) for side in split_by_hash(["HD 1", "HD 2", "HD 1"])]
        ['test', 'train', 'test']
    """

    def side(identity: str) -> Split:
        digest = hashlib.sha256(f"{salt}{identity}".encode()).digest()
        u = int.from_bytes(digest[:8], "big") / 2**64
        return "test" if u < test else "validation" if u < test + validation else "train"

    return np.array([side(str(identity)) for identity in identities], dtype="U10")


def near_duplicates(
    identities: Sequence[str] | NDArray[np.str_],
    flux: NDArray[np.floating],
    mask: NDArray[np.bool_],
    *,
    distance: float,
    among: NDArray[np.bool_] | None = None,
) -> NDArray[np.str_]:
    """Give nearly identical spectra the same identity, so that no split can separate them.

    Template libraries repeat each other: a newer version has most of the older spectra under new names.

    Arguments:
        identities: Names of the stars, (N,).
        flux: Spectra at mean |flux| = 1, (N, D).
        mask: True = bad, (N, D).
        distance: Per-pixel rms difference below which two spectra are one star.
        among: Rows to compare, (N,); the others keep their names.

    Returns:
        Names, (N,): the first of each group, by row.

    Example:
        >>> flux = np.array([[1.0, 1.0], [1.0, 1.001], [2.0, 0.0]])
        >>> [str(name) for name in near_duplicates(["a", "b", "c"], flux, flux < 0, distance=0.01)]
        ['a', 'a', 'c']
    """
    names = np.asarray(identities, dtype=str)
    rows = np.arange(len(names)) if among is None else np.flatnonzero(among)
    good = (~mask[rows]).astype(np.float32)
    values = np.where(mask[rows], 0, flux[rows]).astype(np.float32)

    # Masked squared distances of all pairs, by three matrix products.
    square = (values**2) @ good.T
    shared = np.maximum(good @ good.T, 1)
    apart = (square + square.T - 2 * values @ values.T) / shared
    close = (apart < distance**2) & (shared > flux.shape[1] / 2)
    same_name = names[rows, None] == names[None, rows]
    left, right = np.nonzero(close | same_name)
    pairs = coo_array((np.ones(len(left)), (left, right)), shape=(len(rows), len(rows)))
    _, group = connected_components(pairs, directed=False)

    _, first = np.unique(group, return_index=True)
    joined = names.copy()
    joined[rows] = names[rows][first[group]]
    return joined
