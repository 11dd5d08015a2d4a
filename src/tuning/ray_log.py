"""A log in many files, read by the nodes of a Ray cluster: each file by whichever node is free, with Ray Data.

What comes back are the columns that a log needs, ids as numbers into a list: the files may be larger than a machine's
memory, these columns may not. The rest (rules, split, fingerprints) is what `dataset=table` does, and so is the result.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from src.core.errors import DataError, ProblemsFound
from src.core.logging import get_logger
from src.data.adapters import table
from src.data.adapters.registry import Adapter
from src.data.tables import Folder, Table
from src.tuning.ray_session import ray_session
from src.tuning.settings import RaySettings

_log = get_logger(__name__)

#: what Ray names the values that it was given
_ITEM = "item"
_MEMORY_MB = 512


@dataclass(frozen=True, eq=False)
class RayFolder:
    """A folder of files as a `Table` whose files are read on the cluster."""

    folder: Folder

    @property
    def label(self) -> str:
        """The folder."""
        return self.folder.label

    @property
    def names(self) -> tuple[str, ...]:
        """Its columns."""
        return self.folder.names

    def read(self, ids: Sequence[str], values: Sequence[str]) -> pa.Table:
        """As `Table.read`; raises ``DataError`` for what the nodes found wrong, all of it together."""
        parts, wanted = self.folder.parts, (tuple(ids), tuple(values))

        def read_part(row: dict[str, Any]) -> dict[str, Any]:
            try:
                found = parts[row[_ITEM]].read(*wanted)
            except ProblemsFound as error:
                return {"place": row[_ITEM], "table": b"", "problems": [error]}
            return {"place": row[_ITEM], "table": _packed(found), "problems": []}

        with _connected():
            nodes = sum(node["Alive"] for node in ray.nodes())
            _log.info("%s: %d files are read on %d nodes", self.label, len(parts), nodes)
            ray.data.DataContext.get_current().enable_progress_bars = False
            source = ray.data.from_items(list(range(len(parts))), override_num_blocks=len(parts))
            rows = sorted(source.map(read_part).take_all(), key=lambda row: row["place"])
        if problems := [problem for row in rows for error in row["problems"] for problem in error.problems]:
            raise DataError(problems)
        tables = [pa.ipc.open_stream(row["table"]).read_all() for row in rows]
        return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()

    def where(self, row: int) -> str:
        """File and line of a row."""
        return self.folder.where(row)


def _packed(found: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, found.schema) as writer:
        writer.write_table(found.unify_dictionaries())
    return bytes(sink.getvalue())


@contextmanager
def _connected() -> Iterator[None]:
    """The cluster that this process is joined to, the one that ``RAY_ADDRESS`` names, or a Ray of this machine."""
    if ray.is_initialized():
        yield
        return
    settings = RaySettings(address=os.environ.get("RAY_ADDRESS", ""), memory_mb=_MEMORY_MB)
    with tempfile.TemporaryDirectory() as folder, ray_session(settings, False, "cpu", Path(folder)):
        yield


def on_cluster(log: Table) -> Table:
    """A folder's files are read on the cluster; a single file is read here."""
    return RayFolder(log) if isinstance(log, Folder) else log


#: ``dataset.adapter=src.tuning.ray_log:ADAPTER``, which `conf/dataset/table_on_ray.yaml` names
ADAPTER = Adapter(lambda settings: table.load(settings, on_cluster), table.TABLE_READS, files=table.files)
