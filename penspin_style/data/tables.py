"""Columns of arrays that all have one shape, as Parquet and back, bit for bit.

One number a row is a plain column, a vector a list of fixed size, more axes are lists of lists:
what LeRobot's readers, pandas and DuckDB take without being told.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from penspin_style import storage

DTYPES = ("bool", "uint8", "uint16", "int32", "int64", "float32", "float64")
MAX_ROWS, MAX_BYTES = 10**8, 2**30
"""Of one file, decompressed."""
_ROWS = 256  # that are read at a time

Kind = tuple[str, tuple[int, ...]]
"""Type and shape of one value; (1,) is one number a row."""


class TableError(ValueError):
    """A file is not the table that it should be."""


def need_pyarrow() -> None:
    """Refuse to begin what cannot end.

    Raises:
        ValueError: pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"Parquet files need pyarrow ({error}): pip install 'penspin_style[lerobot]'"
        ) from error


def to_table(columns: Mapping[str, np.ndarray]) -> Any:
    """Return an Arrow table of arrays (T, *shape)."""
    import pyarrow as pa

    return pa.table({name: _arrow(values) for name, values in columns.items()})


def _arrow(values: np.ndarray) -> Any:
    import pyarrow as pa

    sizes = () if values.shape[1:] == (1,) else values.shape[1:]
    column = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(sizes):
        if len(sizes) == 1:
            column = pa.FixedSizeListArray.from_arrays(column, size)
        else:
            offsets = np.arange(0, len(column) + 1, size, dtype=np.int32)
            column = pa.ListArray.from_arrays(pa.array(offsets), column)
    return column


class TableWriter:
    """Write tables of the same columns one after the other; each is a row group of its own."""

    def __init__(self, path: pathlib.Path) -> None:
        import pyarrow as pa

        self._sink: Any = pa.OSFile(str(path), "wb")
        self._writer: Any = None

    @property
    def size(self) -> int:
        """Bytes written."""
        return self._sink.tell()

    def add(self, table: Any) -> None:
        """Append a table."""
        import pyarrow.parquet as pq

        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, table.schema, compression="snappy")
        self._writer.write_table(table, row_group_size=max(1, len(table)))

    def close(self) -> None:
        """Write the index; the file is whole afterwards."""
        if self._writer is not None:
            self._writer.close()
        self._sink.close()

    def drop(self) -> None:
        """Let go of a file that is not wanted any more, in whatever state; also after `close`."""
        self._writer = None
        with contextlib.suppress(OSError):  # of the disk that is why it is not wanted
            self._sink.close()


def read_table(path: pathlib.Path, kinds: Mapping[str, Kind]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rows of a file in pieces, name -> (n, *shape); other columns are left out.

    Raises:
        TableError: not Parquet, a column is missing, or not of this type and shape in every row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage.open_file(path) as raw, pq.ParquetFile(raw) as file:
            _check_size(path, file.metadata)
            if missing := sorted(set(kinds) - set(file.schema_arrow.names)):
                raise TableError(f"{path} has no columns {missing}")
            for batch in file.iter_batches(_ROWS, columns=list(kinds)):
                yield {name: _numpy(path, name, batch[name], kinds[name]) for name in kinds}
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path} is not a readable Parquet file ({error})") from error


def column_names(path: pathlib.Path) -> list[str]:
    """Return the names of a file's columns.

    Raises:
        TableError: not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage.open_file(path) as raw, pq.ParquetFile(raw) as file:
            return [str(name) for name in file.schema_arrow.names]
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{path} is not a readable Parquet file ({error})") from error


def _check_size(path: pathlib.Path, metadata: Any) -> None:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    size = sum(group.total_byte_size for group in groups)
    if metadata.num_rows > MAX_ROWS or size > MAX_BYTES:
        raise TableError(
            f"{path} says {metadata.num_rows} rows, {size} bytes unfolded; up to {MAX_ROWS} rows "
            f"and {MAX_BYTES} bytes are read"
        )


def _numpy(path: pathlib.Path, name: str, column: Any, kind: Kind) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    dtype, shape = kind
    rows = len(column)
    if isinstance(column, pa.ExtensionArray):  # Array2D of a `datasets` that is imported as well
        column = column.storage
    for size in () if shape == (1,) else shape:
        if not (pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)):
            raise TableError(f"{path}: {name!r} is {column.type}, not lists of shape {shape}")
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()  # pyright: ignore
        if lengths not in ([], [size]):
            raise TableError(f"{path}: {name!r} has lists of lengths {lengths[:5]}, not {size}")
        column = column.flatten()
    if column.null_count or str(column.type) != _ARROW_NAMES.get(dtype, dtype):
        raise TableError(
            f"{path}: {name!r} is {column.type} with {column.null_count} gaps, not {dtype}"
        )
    return column.to_numpy(zero_copy_only=False).reshape(rows, *shape)


_ARROW_NAMES = {"float32": "float", "float64": "double"}


def read_texts(path: pathlib.Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Return columns of text.

    Raises:
        TableError: not Parquet, or a column is missing or not of text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with storage.open_file(path) as raw, pq.ParquetFile(raw) as file:
            _check_size(path, file.metadata)
            types = {name: file.schema_arrow.field(name).type for name in names}
            if wrong := [name for name, kind in types.items() if not pa.types.is_string(kind)]:
                raise TableError(f"{path}: {wrong} are not text")
            table = file.read(columns=list(names))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise TableError(f"{path} is not a readable Parquet file ({error})") from error
    return {name: [str(text) for text in table[name].to_pylist()] for name in names}
