"""Fetching a MovieLens release: one archive, checked before anything of it touches the disk."""

from __future__ import annotations

import hashlib
import io
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from src.core.errors import DataError
from src.core.logging import get_logger
from src.core.paths import write_bytes

_log = get_logger(__name__)

SOURCE = "https://files.grouplens.org/datasets/movielens"
_TIMEOUT_SECONDS = 60


def download(name: str, root: Path, wanted: Sequence[str], md5: str, folder: str) -> None:
    """Put the ``wanted`` files of the release, from its ``folder``, into ``root``; files that are there already stay.

    Only these members are read out of the archive, under these names, so that nothing in it can choose where it lands.
    Raises ``DataError`` without a network, for an archive with another checksum, and where ``root`` cannot be written.

    Args:
        name: of the release, such as ``ml-100k``.
        root: the folder that gets the files.
        wanted: their names.
        md5: the archive's checksum, in hexadecimal digits.
        folder: where they lie in the archive.
    """
    url = f"{SOURCE}/{name}.zip"
    _log.info("downloading %s", url)
    by_hand = f"download {url} (MD5 {md5}) elsewhere and put {', '.join(wanted)} into {root}"
    archive = _fetch(url, by_hand)
    found = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataError.one(url, found, f"the checksum (MD5) must be {md5}", by_hand)
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            contents = {member: opened.read(f"{folder}/{member}") for member in wanted}
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError.one(url, str(error), "is not the expected archive", by_hand) from None
    try:
        for member, content in contents.items():
            write_bytes(root / member, content)
    except OSError as error:
        raise DataError.one("dataset.root", str(root), f"cannot be written ({error.strerror})", by_hand) from None


def _fetch(url: str, by_hand: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            content: bytes = response.read()
            return content
    except urllib.error.HTTPError as error:
        raise DataError.one(url, error.code, "the server refused the download", by_hand) from None
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise DataError.one(url, str(reason), "cannot be reached; is there a network?", by_hand) from None
