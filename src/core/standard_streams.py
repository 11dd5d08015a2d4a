"""Standard streams that cannot end a run: a dead pipe, a full device or a closed terminal costs the screen only."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: what a terminal without Unicode shows for the signs that this program prints; others become ``\\u....``
_ASCII = {"→": "->", "•": "*", "…": "...", "·": "*", "×": "x", "≤": "<=", "≥": ">=", "–": "-", "—": "-", "±": "+-"}
_READABLE = "readable"


def _readable(error: UnicodeError) -> tuple[str, int]:
    """A codec's error handler: signs that cannot be encoded are written in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in text), error.end


codecs.register_error(_READABLE, _readable)


class SteadyFile(io.FileIO):
    """A file descriptor that swallows what it can no longer write; it then leads to nowhere, for children too."""

    #: why nothing reaches the reader any more; None while everything is well
    lost: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write as `io.FileIO.write` does, without ever failing.

        Args:
            data: the bytes to write.

        Returns:
            How many were taken; all of them where the reader is gone or does not keep up.
        """
        try:
            written: int | None = super().write(data)
        except OSError as error:
            self.lost, written = error, None
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        return memoryview(data).nbytes if written is None else written


def steady(descriptor: int, encoding: str) -> TextIO:
    """A text stream that never raises when it is written to.

    Args:
        descriptor: the open file descriptor to write to; closing the stream leaves it open.
        encoding: signs that it does not have are written in ASCII.
    """
    raw = SteadyFile(descriptor, "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, _READABLE, line_buffering=True)


def lost_because(stream: TextIO) -> str | None:
    """Why a stream of `steady` no longer reaches its reader (``Broken pipe``); None where it does, as far as known."""
    lost: OSError | None = getattr(getattr(getattr(stream, "buffer", None), "raw", None), "lost", None)
    return None if lost is None else str(lost.strerror)


def steady_standard_streams() -> None:
    """Replace stdout and stderr by streams that cannot end the run; a process calls it once, before anything else."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # the next file that is opened would get a closed descriptor's number, and every print would land in it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream: TextIO | None = getattr(sys, name)
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        setattr(sys, name, steady(descriptor, getattr(stream, "encoding", None) or "utf-8"))
