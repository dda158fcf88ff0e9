"""The catalogue of a run: the rows of all finished pieces as one table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from astropy.table import MaskedColumn, Table

from bayesspec.exceptions import BayesspecError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CATALOGUE", "Piece", "finished", "missing", "read_catalogue", "rows_name", "write_catalogue"]

CATALOGUE = "catalogue.parquet"

SMALL = 10_000
"""Up to this many rows the catalogue is also written as ECSV."""

GROUP = 50_000
"""Rows in memory at a time."""


class Piece(NamedTuple):
    """A finished piece: its inputs first to last - 1, how many of them failed, and its rows."""

    first: int
    last: int
    failed: int
    path: Path


def rows_name(first: int, count: int, failed: int) -> str:
    """The file that marks a piece as done; its name has the piece and the number of failures."""
    return f"{first:09d}-{count}-{failed}.parquet"


def finished(rows: Path) -> list[Piece]:
    """Finished pieces in order, without overlap.

    Pieces can overlap after a worker that seemed dead finishes its work; then the longer one counts.
    """
    found = (re.fullmatch(r"(\d+)-(\d+)-(\d+)\.parquet", path.name) for path in rows.iterdir())
    every = [
        Piece(first, first + count, failed, rows / match[0])
        for match in found
        if match
        for first, count, failed in [map(int, match.groups())]
    ]
    pieces: list[Piece] = []
    for piece in sorted(every, key=lambda piece: (piece.first, -piece.last)):
        if not pieces or piece.first >= pieces[-1].last:
            pieces.append(piece)
    return pieces


def missing(done: Sequence[tuple[int, int] | Piece], total: int, size: int) -> Iterator[tuple[int, int]]:
    """Pieces (first, last + 1) that are still to do: all pieces of this size, minus what is done.

    Example:
        >>> list(missing([(0, 4), (4, 6)], total=10, size=4))
        [(6, 8), (8, 10)]
    """
    n = 0
    for first in range(0, total, size):
        last = min(first + size, total)
        at = first
        while n < len(done) and done[n][0] < last:
            if done[n][0] > at:
                yield at, done[n][0]
            at = max(at, done[n][1])
            if at > last:
                break
            n += 1
        if at < last:
            yield at, last


def write_catalogue(rows: Path, root: Path, scratch: Path) -> int:
    """Write the rows of all finished pieces to `catalogue.parquet`, and to `catalogue.ecsv` if they are few.

    At most about 50,000 rows are in memory at a time.

    Returns:
        Number of rows.

    Raises:
        BayesspecError: if it cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    pieces = [piece.path for piece in finished(rows)]
    if not pieces:
        return 0
    target, own = root / CATALOGUE, scratch / CATALOGUE
    try:
        schema = pa.unify_schemas(
            [parquet.read_schema(piece) for piece in pieces], promote_options="permissive"
        )
        longest = max((parquet.read_schema(piece) for piece in pieces), key=len)
        order = dict.fromkeys([*longest.names, *schema.names])
        # Metadata are those of the piece with the most columns.
        schema = pa.schema([_told(schema.field(name), longest) for name in order])
        count = 0
        with parquet.ParquetWriter(own, schema) as writer:
            waiting: list[pa.Table] = []
            for n, piece in enumerate(pieces):
                waiting.append(_cast(parquet.read_table(piece), schema))
                count += len(waiting[-1])
                if sum(map(len, waiting)) >= GROUP or n == len(pieces) - 1:
                    writer.write_table(pa.concat_tables(waiting), row_group_size=GROUP)
                    waiting = []
        own.replace(target)
        small = root / "catalogue.ecsv"
        if count <= SMALL:
            read_catalogue(target).write(scratch / small.name, format="ascii.ecsv", overwrite=True)
            (scratch / small.name).replace(small)
        else:
            small.unlink(missing_ok=True)
    except (OSError, pa.ArrowException) as error:
        with suppress(OSError):
            own.unlink(missing_ok=True)
        raise BayesspecError(f"{target}: cannot be written ({error})") from error
    return count


def read_catalogue(path: Path, columns: list[str] | None = None) -> Table:
    """A catalogue as an astropy table, with units and descriptions; missing values are masked."""
    from pyarrow import parquet

    found = parquet.read_table(path, columns=columns)
    table = Table()
    for field in found.schema:
        column = found.column(field.name)
        absent = column.is_null().to_numpy()
        kind = str if str(field.type) == "string" else field.type.to_pandas_dtype()
        values = np.array(
            column.fill_null("" if kind is str else False if kind is np.bool_ else 0).to_pylist(), kind
        )
        meta = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        table[field.name] = MaskedColumn(values, mask=absent) if absent.any() else values
        table[field.name].unit, table[field.name].description = meta.get("unit"), meta.get("description")
    return table


def _told(field: pa.Field, longest: pa.Schema) -> pa.Field:
    return longest.field(field.name).with_type(field.type) if field.name in longest.names else field


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
