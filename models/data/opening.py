"""Opens a file as text, or as Parquet: decompressed by its first bytes, in one encoding or not at all."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from schemas.errors import DataError

_GZIP, _ZSTD, _PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
# Longest first: UTF-32's mark begins with UTF-16's.
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
          (codecs.BOM_UTF16_BE, "utf-16"))
_CHUNK = 1 << 20


# Files that are no table; opened as text they would be "in another encoding".
_OTHERS = (
    (b"PK\x03\x04", "a zip archive: unpack it"), (b"7z\xbc\xaf", "an archive of 7-Zip: unpack it"),
    (b"Rar!", "an archive of RAR: unpack it"), (b"SQLite format 3", "a database of SQLite: export the table as CSV"),
    (b"\x93NUMPY", "an array of NumPy: save it as CSV or Parquet"), (b"\x89HDF", "HDF5: save it as CSV or Parquet"),
    (b"ARROW1", "an Arrow file: save it as Parquet"), (b"FEA1", "a Feather file: save it as Parquet"),
    (b"ORC", "an ORC file: save it as Parquet"), (b"Obj\x01", "an Avro file: save it as Parquet or JSON lines"),
    (b"\x80\x03", "a pickle, which is never opened: save it as CSV or Parquet"),
    (b"\x80\x04", "a pickle, which is never opened: save it as CSV or Parquet"),
    (b"\x80\x05", "a pickle, which is never opened: save it as CSV or Parquet"))


def refuse_archives(path: Path, start: bytes) -> None:
    """Raise DataError, which says what to do, for a file that is known to be no table."""
    if path.name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")):
        raise DataError(f"{path} is a tar archive: unpack it")
    if path.name.endswith((".xlsx", ".xlsm")):
        raise DataError(f"{path} is a workbook of Excel: save the sheet as CSV")
    for mark, what in _OTHERS:
        if start.startswith(mark):
            raise DataError(f"{path} is {what}")


def is_parquet(path: Path) -> bool:
    """Tell whether the file is Parquet."""
    return _start(path)[:4] == _PARQUET


@contextmanager
def opened(path: Path, encoding: str = "") -> Iterator[Iterator[str]]:
    """Open a text file, plain or compressed by gzip or zstd, as an iterator of its lines, ends of lines removed.

    Args:
        encoding: how the file is encoded; "" = UTF-8, with or without a byte order mark.

    Raises:
        DataError: the file cannot be opened, is damaged, or is not in this encoding; raised while lines are read too.
    """
    start = _start(path)
    refuse_archives(path, start)
    try:
        source: Any
        if start.startswith(_GZIP):
            source = gzip.open(path)  # noqa: SIM115 - closed below, like the others
        elif start.startswith(b"BZh"):
            source = bz2.open(path)  # noqa: SIM115
        elif start.startswith(b"\xfd7zXZ"):
            source = lzma.open(path)  # noqa: SIM115
        elif start.startswith(_ZSTD):
            source = _zstd(path)
        else:
            source = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    with source:
        yield text_lines(str(path), source, encoding)


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file.

    Raises:
        DataError: it is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # also a text that is not UTF-8
        raise DataError(f"{path} is no readable Parquet file: {error}") from error


def _start(path: Path) -> bytes:
    if path.is_dir():
        raise DataError(f"{path} is a folder, a file was expected")
    try:
        with path.open("rb") as source:
            return source.read(16)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _zstd(path: Path) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"), _CHUNK)


def text_lines(path: str, source: IO[bytes], encoding: str = "") -> Iterator[str]:
    """Yield the lines of bytes, as `opened` does. Only \\n, \\r\\n and \\r end one, not U+2028, which texts hold."""
    if not encoding:
        try:
            head = source.peek(16)[:16] if isinstance(source, io.BufferedReader | gzip.GzipFile) else b""
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{path} is damaged: {error}") from error
        marked = next((name for mark, name in _MARKS if head.startswith(mark)), "")
        if marked:
            raise DataError(f"{path} is encoded as {marked.upper()}: FRESHET_EVENTS_ENCODING={marked} reads it")
    try:
        text = io.TextIOWrapper(source, encoding=encoding or "utf-8-sig", errors="strict", newline=None)
    except LookupError:
        raise DataError(
            f"there is no encoding {encoding!r}; Python's names hold, such as latin-1, cp1252, utf-16") from None
    number = 0
    try:
        for line in text:
            number += 1
            yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        # Decoding runs ahead of the lines by a buffer.
        byte, before = error.object[error.start], number + error.object[:error.start].count(b"\n") + 1
        raise DataError(
            f"{path} is not {(encoding or 'UTF-8').upper()}: byte 0x{byte:02x} in line {before:,} or before. "
            "Western European files are mostly Windows-1252: FRESHET_EVENTS_ENCODING=cp1252 reads them") from None
    except UnicodeError as error:
        raise DataError(f"{path} is not {encoding.upper()}: {error}") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path} is damaged after line {number:,}: {error}") from error
