"""Bytes and text of files, compressed or not, and what is said of those that cannot be read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from src.core.errors import DataError, first_line
from src.data.delimited import not_text, what_is_there

_HEAD = 1 << 16
#: What a file that is not whole makes its readers raise.
DAMAGE = (pa.ArrowException, OSError, EOFError, lzma.LZMAError, zlib.error)
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4", ".xz")
_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zst", b"\x04\x22\x4d\x18": "lz4", b"\xfd7zXZ": "xz"}


def find(path: Path) -> Path | None:
    """The path as it is, or the same with the ending of a compressed file; None where neither is there."""
    return next((p for p in (path, *(path.with_name(path.name + end) for end in COMPRESSED)) if p.exists()), None)


def bare_name(path: Path) -> str:
    """A file's name without its endings."""
    name = path.name
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return Path(name).stem


def starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as handle:
            return handle.read(len(magic)) == magic
    except OSError as error:
        raise DataError.one("file", str(path), f"cannot be read ({error.strerror})", "check the path") from None


def guarded(path: Path, read: Callable[[], Any]) -> Any:
    """What ``read`` returns; raises ``DataError`` where the file is damaged or cannot be read."""
    try:
        return read()
    except (*DAMAGE, ValueError, NotImplementedError) as error:
        rule = f"cannot be read ({first_line(error, most=200)})"
        raise DataError.one("file", str(path), rule, "is it whole, and of the format that its name says?") from None


def stream(path: Path) -> IO[bytes]:
    """A file's bytes, decompressed by what its first bytes say."""
    with path.open("rb") as handle:
        head = handle.read(6)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind == "gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if kind == "bz2":
        return cast(IO[bytes], bz2.open(path, "rb"))
    if kind == "xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    if kind is not None:
        return cast(IO[bytes], pa.CompressedInputStream(pa.OSFile(str(path)), {"zst": "zstd"}.get(kind, kind)))
    if head.startswith(b"PK\x03\x04"):
        raise DataError.one("file", str(path), "is a zip archive", "unpack it, and name the file in it")
    return path.open("rb")


def arrow_stream(path: Path) -> Any:
    """As `stream`, for Arrow: it decompresses by itself what it can."""
    with path.open("rb") as handle:
        head = handle.read(6)
    kind = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if kind is None:
        return pa.OSFile(str(path))
    if kind == "xz":
        return pa.PythonFile(lzma.open(path, "rb"), "r")
    return pa.CompressedInputStream(pa.OSFile(str(path)), {"zst": "zstd", "gz": "gzip"}.get(kind, kind))


def head(path: Path) -> bytes:
    """The first bytes of a file, whole lines of them."""

    def read() -> bytes:
        with stream(path) as handle:
            return handle.read(_HEAD)

    start: bytes = guarded(path, read)
    end = start.rfind(b"\n")
    return start if len(start) < _HEAD or end < 0 else start[: end + 1]


def text_of(path: Path, encoding: str | None = None, fallback: str | None = None) -> str:
    """A file's text; UTF-8 unless another encoding is asked for, ``fallback`` where its bytes are no UTF-8.

    Raises ``DataError`` that names the line of the first byte that is no text, with the next step.

    Args:
        path: the file.
        encoding: the one that was asked for; None: what a mark at the beginning says, else UTF-8.
        fallback: an encoding that takes any bytes; None: there is none.
    """

    def read() -> bytes:
        with stream(path) as handle:
            return handle.read()

    if find(path) is None:
        raise DataError.one("file", str(path), "is missing", what_is_there(path))
    content: bytes = guarded(path, read)
    wanted = encoding or marked(content) or "utf-8-sig"
    try:
        return content.decode(wanted)
    except UnicodeDecodeError as error:
        if encoding is None and fallback is not None:
            return content.decode(fallback)
        raise DataError([not_text(path, content, wanted, error)]) from None
    except LookupError:
        raise DataError.one(
            "dataset.encoding", wanted, "is no encoding that Python knows", "for example utf-8"
        ) from None


def marked(content: bytes) -> str | None:
    """The encoding that a byte-order mark tells of; UTF-8's is read as a rule."""
    return "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else None


def readable(raw: IO[bytes]) -> Any:
    return io.BytesIO(raw.read()) if isinstance(raw, pa.NativeFile) else raw
