"""A dataset that was read and split once: kept as memory-mapped Arrow files, so that the next run starts in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import src.data
from src.core.data_utils import fingerprint, fingerprint_file
from src.core.errors import DataError
from src.core.logging import get_logger
from src.core.paths import MANIFEST, write_json
from src.data.dataset import load_dataset, source_files
from src.data.example_files import load_sequences, save_sequences
from src.data.examples import SequenceData
from src.data.settings import DatasetSettings
from src.pipeline.cache import StageCache

_log = get_logger(__name__)

#: bytes of source files from which reading takes longer than looking for what was kept
LARGE = 8 << 20
#: what reads files: another version may read them otherwise
_READERS = ("numpy", "pandas", "pyarrow")
#: where the source lies, and whether it may be fetched, decides nothing of what is in it
_PLACES = ("root", "download")


def prepared_data(settings: DatasetSettings, cache: StageCache) -> SequenceData:
    """As `load_dataset`; a large source is read once, and then comes out of the cache while its files are the same.

    Small sources, and those whose adapter does not name its files, are read each time. What the code of `src.data` says
    is a part of the key: no number has to be raised when it changes.

    Args:
        settings: the dataset.
        cache: where finished stages lie; data are kept beside them, and are none of the run's artefacts.
    """
    files = source_files(settings)
    if files is None or sum(file.stat().st_size for file in files) < LARGE:
        return load_dataset(settings)
    found: list[SequenceData] = []
    determined_by = _determined_by(settings, files)

    def build(folder: Path) -> None:
        data = load_dataset(settings)
        if _determined_by(settings, files) != determined_by:
            rule = "changed while it was read"
            raise DataError.one("dataset.root", str(settings.root), rule, "run again when nothing writes to it")
        save_sequences(folder, data)
        write_json(folder / MANIFEST, {"kind": "data", "fingerprints": data.fingerprints()})
        found.append(data)

    # a cache object of its own: the run's own records tell of models and labels
    record = StageCache(cache.root, cache.reuse).stage("data", determined_by, build)
    if found:
        return found[0]
    data = load_sequences(record.folder)
    if data.id_map.untitled:
        _log.warning("%d of %d items of %s have no title", data.id_map.untitled, data.num_items, data.name)
    return data


def _determined_by(settings: DatasetSettings, files: Sequence[Path]) -> dict[str, Any]:
    """Everything that decides what is read: settings, the files' names and content, and the code that reads them."""
    room = Path(src.data.__file__).parent
    return {
        "settings": {name: value for name, value in asdict(settings).items() if name not in _PLACES},
        "files": [[file.name, fingerprint_file(file)] for file in files],
        "code": fingerprint(*(path.read_text(encoding="utf-8") for path in sorted(room.rglob("*.py")))),
        "readers": {name: version(name) for name in _READERS},
    }
