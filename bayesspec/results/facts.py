"""Facts about a star from its file: coordinates, survey identifiers, class and redshift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from astropy import units as u

from bayesspec.observation import printable

__all__ = ["FACTS", "Fact", "known_facts"]


class Fact(NamedTuple):
    """A column of the table: its source, type, and FITS keyword."""

    key: str
    """Key in the `meta` of an `Observation`."""
    kind: type
    card: str
    comment: str
    unit: u.UnitBase | None = None


FACTS = {
    "survey": Fact("survey", str, "SURVEY", "survey"),
    "ra": Fact("ra", float, "RA", "[deg] right ascension", u.deg),
    "dec": Fact("dec", float, "DEC", "[deg] declination", u.deg),
    "plate": Fact("plate", int, "PLATE", "SDSS plate"),
    "mjd": Fact("mjd", int, "MJD", "day of the observation"),
    "fiber": Fact("fiber", int, "FIBERID", "fibre"),
    "obsid": Fact("obsid", int, "OBSID", "ID of the LAMOST spectrum"),
    "target_id": Fact("target_id", int, "TARGETID", "ID of the DESI target"),
    "gaia_id": Fact("gaia_id", int, "GAIA_ID", "Gaia source"),
    "survey_class": Fact("class", str, "SVYCLASS", "class from the survey"),
    "survey_subclass": Fact("subclass", str, "SVYSUBCL", "subclass from the survey"),
    "survey_redshift": Fact("redshift", float, "SVYZ", "redshift from the survey"),
}
"""Columns of facts, in order."""


def known_facts(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The facts in the `meta` of a star, by column, without invalid ones such as an empty text.

    Example:
        >>> known_facts({"ra": 10.5, "class": "STAR", "plate": "?", "exposures": ("coadd",)})
        {'ra': 10.5, 'survey_class': 'STAR'}
    """
    found: dict[str, Any] = {}
    for name, fact in FACTS.items():
        value = meta.get(fact.key)
        if value is None or np.ndim(value) or isinstance(value, bool | np.bool_):
            continue
        if fact.kind is str:
            value = printable(str(value)).strip()
            if value:
                found[name] = value
            continue
        try:
            number = fact.kind(value)
        except (TypeError, ValueError, OverflowError):
            continue
        if np.isfinite(float(number)) and abs(number) < 2**63:
            found[name] = number
    return found
