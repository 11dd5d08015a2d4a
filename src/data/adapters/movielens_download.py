"""Fetching a MovieLens release: one archive, gone on with where it was cut off, checked before any of it is read."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pooch

from src.core.errors import DataError
from src.core.locks import alone
from src.core.logging import get_logger, progress_bar
from src.data.compressed_files import find

_log = get_logger(__name__)

SOURCE = "https://files.grouplens.org/datasets/movielens"
_TIMEOUT_SECONDS = 60
_CHUNK = 1 << 20
#: how often a download that gets no further is begun again
_TRIES = 3


def download(name: str, root: Path, wanted: Sequence[str], md5: str, folder: str) -> None:
    """Put the ``wanted`` files of the release, from its ``folder``, into ``root``; files that are there already stay.

    Only these members are read out of the archive, under these names, so that nothing in it can choose where it lands.
    What came of an archive before the network failed stays in ``root``, and the next call goes on there. One process
    at a time downloads into a folder; others wait and then find the files.

    Args:
        name: of the release, such as ``ml-100k``.
        root: the folder that gets the files.
        wanted: their names.
        md5: the archive's checksum, in hexadecimal digits.
        folder: where they lie in the archive.

    Raises:
        DataError: without a network, for an archive with another checksum, and where ``root`` cannot be written.
    """
    url = f"{SOURCE}/{name}.zip"
    by_hand = f"download {url} (MD5 {md5}) elsewhere and put {', '.join(wanted)} into {root}"
    archive = root / f".{name}.zip"

    def waiting(holder: str) -> None:
        _log.info("%s is downloading %s; waiting until it is done", holder, url)

    try:
        with alone(root / f".{name}.lock", waiting):
            missing = [member for member in wanted if find(root / member) is None]
            if missing:  # another process may have put them there while this one waited
                _bring(url, archive, md5, folder, missing, by_hand)
    except OSError as error:
        raise DataError.one("dataset.root", str(root), f"cannot be written ({error.strerror})", by_hand) from None
    finally:
        with suppress(OSError):  # what is there stays, and a folder that could not be made is not there
            root.rmdir()


def _bring(url: str, archive: Path, md5: str, folder: str, wanted: Sequence[str], by_hand: str) -> None:
    _log.info("downloading %s", url)
    try:
        _fetch(url, archive, md5, by_hand)
        _unpack(archive, archive.parent, folder, wanted, url, by_hand)
    finally:
        with suppress(OSError):
            archive.unlink(missing_ok=True)


def _fetch(url: str, archive: Path, md5: str, by_hand: str) -> None:
    pooch.get_logger().setLevel(logging.WARNING)
    failed: list[Exception] = []

    def resumed(address: str, target: str, _: object) -> None:
        try:
            resume(address, archive.with_name(f"{archive.name}.part"))
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
            failed.append(error)
            raise
        os.replace(archive.with_name(f"{archive.name}.part"), target)

    try:
        pooch.retrieve(url, f"md5:{md5}", archive.name, archive.parent, downloader=resumed)
    except ValueError as error:
        found = str(error).rpartition(" but got ")[2].partition(".")[0]  # pooch tells it in its message alone
        raise DataError.one(url, found, f"the checksum (MD5) must be {md5}", by_hand) from None
    except (OSError, HTTPException) as error:
        if not failed:
            raise
        if isinstance(error, urllib.error.HTTPError):
            raise DataError.one(url, error.code, "the server refused the download", by_hand) from None
        reason = getattr(error, "reason", error)
        step = f"try again, which goes on where it was cut off; or {by_hand}"
        raise DataError.one(url, str(reason), "cannot be reached; is there a network?", step) from None


def resume(url: str, part: Path) -> None:
    """Fetch what ``part`` does not hold yet; a server that cannot send a part sends the whole.

    Raises:
        OSError, HTTPException: the network failed, and again without a further byte; what came is in ``part``.
    """
    tries = 0
    while True:
        begun = part.stat().st_size if part.is_file() else 0
        try:
            if _receive(url, part, begun):
                return
            raise ConnectionError("the connection was cut")
        except (HTTPException, OSError) as error:
            if isinstance(error, urllib.error.HTTPError):
                if error.code != 416 or not begun:  # 416: there is no such part, as of another file
                    raise
                part.unlink()
            further = part.is_file() and part.stat().st_size > begun
            tries = 0 if further else tries + 1
            if tries == _TRIES:
                raise


def _receive(url: str, part: Path, begun: int) -> bool:
    """Append what follows the first ``begun`` bytes; returns whether all of it came."""
    asked = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    with urllib.request.urlopen(asked, timeout=_TIMEOUT_SECONDS) as answer:
        goes_on = getattr(answer, "status", 200) == 206
        begun = begun if goes_on else 0
        left = answer.headers.get("Content-Length")
        total = None if left is None else begun + int(left)
        with part.open("ab" if goes_on else "wb") as handle, progress_bar(_named(url), (total or 0) >> 20) as bar:
            while chunk := answer.read(_CHUNK):
                handle.write(chunk)
                handle.flush()
                bar.update(bar.task_ids[0], completed=handle.tell() >> 20)
            return total is None or handle.tell() == total


def _named(url: str) -> str:
    return f"{url.rpartition('/')[2]} (MB)"


def _unpack(archive: Path, root: Path, folder: str, wanted: Sequence[str], url: str, by_hand: str) -> None:
    """These members of an archive, each whole or not at all."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [opened.getinfo(f"{folder}/{member}") for member in wanted]
            for member, name in zip(members, wanted, strict=True):
                with opened.open(member) as source:
                    _put(source, root / name)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError.one(url, str(error), "is not the expected archive", by_hand) from None


def _put(source: Any, path: Path) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as handle:
            shutil.copyfileobj(source, handle, _CHUNK)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
