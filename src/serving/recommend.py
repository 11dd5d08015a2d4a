"""Recommendations for a whole file of histories."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from src.core.errors import ConfigError, DataError, gather
from src.core.logging import console, get_logger, progress_bar
from src.core.paths import require_writable
from src.core.settings import STRICT
from src.data.examples import Histories
from src.serving.approximate_index import IndexedStudent, InnerProduct, require_index
from src.serving.catalogue import Catalogue
from src.serving.histories import CSV, PARQUET, HistoryBatch, HistoryColumns, HistoryFile, format_of
from src.serving.new_items import EmbedTexts, add_items, open_new_items, read_new_items, require_takes_items
from src.serving.results import StudentResult, require_given
from src.serving.students import ModelStudent, ServedStudent, as_model, open_student, require_k

_log = get_logger(__name__)

#: cells of a padded table of histories, at most
_MOST_CELLS = 2**22
_SCHEMA = pa.schema(
    [
        ("user", pa.string()),
        ("rank", pa.int32()),
        ("item", pa.string()),
        ("title", pa.string()),
        ("score", pa.float32()),
    ]
)


@settings_dataclass(frozen=True, config=STRICT)
class RecommendSettings:
    """Whose recommendations, for whom, and where they go."""

    student: Annotated[Path | None, Field(description="an exported folder, or a result folder")] = None
    histories: Annotated[
        Path | None, Field(description="Parquet, CSV, TSV or JSON Lines: a row a user, or a log with a row an event")
    ] = None
    out: Annotated[Path | None, Field(description="the Parquet or CSV file to write")] = None
    columns: Annotated[HistoryColumns, Field(description="what the columns are called")] = HistoryColumns()
    new_items: Annotated[
        Path | None,
        Field(
            description="items that came after training, a row each: id, title, and the fields that their texts "
            "are made of; CSV, TSV, Parquet or JSON Lines"
        ),
    ] = None
    encoder: Annotated[
        str, Field(description="where the student's language model lies now; empty: where it lay in training")
    ] = ""
    k: Annotated[int, Field(ge=1, description="items a user")] = 10
    exclude_seen: Annotated[bool, Field(description="never recommend what is in the history")] = True
    unknown: Annotated[
        Literal["skip", "popular", "refuse"],
        Field(
            description="ids that the student does not know. skip: they are left out, and so is a user of whom nothing "
            "is left; popular: such a user gets the most popular items; refuse: the command ends before it writes"
        ),
    ] = "skip"
    batch_size: Annotated[int, Field(ge=1, le=100_000, description="users scored at once")] = 512
    index: Annotated[
        Literal["none", "usearch"],
        Field(
            description="none: every item is scored; usearch: an approximate index names candidates, for large "
            "catalogues (an extra of the environment); its recall is told"
        ),
    ] = "none"
    index_effort: Annotated[
        int, Field(ge=1, le=10_000, description="candidates that a search of the index keeps in view: more find more")
    ] = 64
    threads: Annotated[int, Field(ge=0, description="threads of ONNX Runtime; 0: as many as there are cores")] = 0


@dataclass(frozen=True, eq=False)
class RecommendPlan:
    """What `check_recommend` found."""

    student: ServedStudent
    file: HistoryFile
    out: Path
    format: str
    #: scores as inner products, where an index is asked for
    product: InnerProduct | None = None


@dataclass
class RecommendCounts:
    """What became of the users and of their items."""

    users: int = 0
    recommended: int = 0
    popular: int = 0
    left_out: int = 0
    items: int = 0
    unknown_items: int = 0
    seconds: float = 0.0
    example: str | None = None
    #: of an approximate index: see `IndexedStudent.as_dict`
    index: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As the manifest tells it."""
        rate = self.users / self.seconds if self.seconds else 0.0
        return {**self.__dict__, "users_per_second": rate}


def check_recommend(settings: RecommendSettings, embed: EmbedTexts | None = None) -> RecommendPlan:
    """Everything that can be known to be wrong before anything is written; a log is read as a whole for it, and with
    ``unknown=refuse`` any file.

    Args:
        settings: what was asked for.
        embed: reaches the language model of new items.

    Raises:
        ConfigError: with every problem of folder, file, columns, k and output.
        DataError: a log has times that cannot be read or users without a name; ids are unknown and are refused, or no
            id is known.
    """
    found: dict[str, Any] = {}

    def student() -> None:
        folder, growing = require_given("student", settings.student, "student=FOLDER"), settings.new_items is not None
        found["student"] = open_student(folder, settings.threads, growing=growing)
        if settings.unknown == "popular":
            found["student"] = _with_counts(found["student"], settings)
        if settings.new_items is not None and embed is not None:
            source = require_takes_items(found["student"])
            table = open_new_items(settings.new_items)
            new = read_new_items(table, found["student"].catalogue, source, settings.columns.item)
            found["student"] = add_items(found["student"], new, embed)
        require_k(found["student"], settings.k)
        if settings.index == "usearch":
            found["student"] = as_model(found["student"], folder)
            found["product"] = require_index(found["student"].model)

    def file() -> None:
        path = require_given("histories", settings.histories, "histories=FILE")
        found["file"] = HistoryFile.open(path, settings.columns)

    def out() -> None:
        path = require_given("out", settings.out, "out=FILE.parquet")
        found["format"] = format_of(path, "out", (PARQUET, CSV))
        if path.exists():
            raise ConfigError.one("out", str(path), "exists", "name a new file")
        if path.suffix == ".gz":
            raise ConfigError.one("out", str(path), "is not written compressed", "use .parquet, which is")
        require_writable(path, "out")

    def index() -> None:
        if settings.index == "none" and settings.index_effort != RecommendSettings.index_effort:
            rule = "is of an approximate index, and index=none scores every item"
            raise ConfigError.one("index_effort", settings.index_effort, rule, "leave it out, or index=usearch")

    gather(student, file, out, index)
    assert settings.out is not None
    student_found: ServedStudent = found["student"]
    histories: HistoryFile = found["file"].opened(student_found.catalogue)
    plan = RecommendPlan(student_found, histories, settings.out, found["format"], found.get("product"))
    if settings.unknown == "refuse":
        _refuse_unknown(plan)
    elif settings.unknown == "skip":
        _refuse_strangers(plan)
    return plan


def _with_counts(student: ServedStudent, settings: RecommendSettings) -> ServedStudent:
    """The student with the items' popularity, which an export brings and a result's data tell."""
    if student.catalogue.counts is not None:
        return student
    step = "use unknown=skip, or export the student where its data can be read"
    if not isinstance(student, ModelStudent) or settings.student is None:
        rule = "the exported folder does not hold how often each item occurs"
        raise ConfigError.one("unknown", "popular", rule, step)
    data, why = StudentResult.read(settings.student, "student").data_or_none()
    if data is None:
        raise ConfigError.one("unknown", "popular", f"the data that tell what is popular cannot be read: {why}", step)
    catalogue = Catalogue(student.catalogue.id_map, data.item_counts)
    more = (student.settings, student.text_source)
    return ModelStudent(student.model, catalogue, student.name, student.fingerprints, *more)


def _refuse_unknown(plan: RecommendPlan) -> None:
    events, example = 0, None
    for batch in plan.file.batches(plan.student.catalogue, 1 << 14):
        events += int((batch.items < 0).sum())
        example = example or batch.unknown
    if events:
        rule = f"{events:,} of the histories' items are unknown to the student (unknown=refuse)"
        raise DataError.one("histories", example, rule, "mend the file, or use unknown=skip or unknown=popular")


def _refuse_strangers(plan: RecommendPlan) -> None:
    """Raises ``DataError`` where every user would be left out; reads on until one would not be."""
    items, example = 0, None
    for batch in plan.file.batches(plan.student.catalogue, 1 << 14):
        if (batch.items >= 0).any() or not batch.lengths.all():
            return
        items += len(batch.items)
        example = example or batch.unknown
    if items:
        rule = f"none of the {items:,} items of the histories is known to the student {plan.student.name}"
        step = "name the student of this catalogue; unknown=popular gives strangers what is popular"
        raise DataError.one("histories", example, rule, step)


def recommend_file(settings: RecommendSettings, plan: RecommendPlan) -> RecommendCounts:
    """Read the histories batch by batch and write the recommendations, whole or not at all.

    Raises:
        ArtefactError: the student's scores are no numbers.
        DataError: a row cannot be read.
    """
    counts, begun = RecommendCounts(), time.perf_counter()
    total, student = plan.file.users(), plan.student
    if plan.product is not None:
        assert isinstance(student, ModelStudent)  # see `check_recommend`
        student = IndexedStudent(student, plan.product, settings.index_effort, settings.threads)
    with _writing(plan.out, plan.format) as write, progress_bar("recommendations", total or 0) as bar:
        if total is None:
            bar.update(bar.task_ids[0], total=None)
        for batch in plan.file.batches(plan.student.catalogue, settings.batch_size):
            counts.users += len(batch.users)
            counts.items += len(batch.items)
            counts.unknown_items += int((batch.items < 0).sum())
            counts.example = counts.example or batch.unknown
            for table in recommend_batch(student, batch, settings, counts):
                write(table)
            bar.advance(bar.task_ids[0], len(batch.users))
    counts.seconds = time.perf_counter() - begun
    if isinstance(student, IndexedStudent):
        counts.index = student.as_dict(settings.k)
    return counts


def recommend_batch(
    student: ServedStudent, batch: HistoryBatch, settings: RecommendSettings, counts: RecommendCounts
) -> Iterator[pa.Table]:
    """The recommendations of some users, as tables.

    Args:
        student: gives the best items.
        batch: the users and their histories.
        settings: k, what becomes of unknown ids, whether seen items are left out.
        counts: grows by what became of these users.
    """
    owner = np.repeat(np.arange(len(batch.users)), batch.lengths)
    known = batch.items >= 0
    lengths = np.bincount(owner[known], minlength=len(batch.users))
    histories = Histories(batch.items[known].astype(np.int32), np.cumsum(lengths), lengths, student.catalogue.num_items)
    # a user without any history is nobody's fault: the student has an answer for that as well
    nothing_known = (lengths == 0) & (batch.lengths > 0)
    asked = np.flatnonzero(~nothing_known)
    counts.recommended += len(asked)
    for rows in _parts(asked, lengths):
        dense = histories.take(rows).dense(max(1, int(lengths[rows].max())))
        items, scores = student.best(*dense, settings.k, settings.exclude_seen)
        yield _table(student.catalogue, [batch.users[row] for row in rows], items, scores)
    strangers = [batch.users[row] for row in np.flatnonzero(nothing_known)]
    if not strangers:
        return
    popular = student.catalogue.popular() if settings.unknown == "popular" else None
    if popular is None:
        counts.left_out += len(strangers)
        return
    counts.popular += len(strangers)
    assert student.catalogue.counts is not None
    items = np.tile(popular[: settings.k], (len(strangers), 1))
    yield _table(student.catalogue, strangers, items, student.catalogue.counts[items].astype(np.float32))


def _parts(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows in parts whose padded tables stay small, however long one of the histories is."""
    start = 0
    while start < len(rows):
        widest = np.maximum.accumulate(lengths[rows[start:]])
        fits = int(np.searchsorted(widest * np.arange(1, len(widest) + 1), _MOST_CELLS, side="right"))
        yield rows[start : start + max(1, fits)]
        start += max(1, fits)


def _table(catalogue: Catalogue, users: list[str], items: NDArray[np.int64], scores: NDArray[np.float32]) -> pa.Table:
    """Rows of user, rank from 1, item, title and score, without what was excluded."""
    kept = np.isfinite(scores)
    chosen = pa.array(items[kept])
    return pa.table(
        [
            pa.array(users, pa.string()).take(pa.array(np.nonzero(kept)[0])),
            pa.array(np.nonzero(kept)[1] + 1, pa.int32()),
            catalogue.raw_ids.take(chosen),
            catalogue.titles.take(chosen),
            pa.array(scores[kept], pa.float32()),
        ],
        schema=_SCHEMA,
    )


@contextmanager
def _writing(path: Path, kind: str) -> Iterator[Any]:
    """A function that appends tables to a file that appears when the block has ended without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.")
    os.close(descriptor)
    try:
        if kind == PARQUET:
            with pq.ParquetWriter(name, _SCHEMA) as parquet:
                yield parquet.write_table
        else:
            options = pa.csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ",")
            with pa.csv.CSVWriter(name, _SCHEMA, write_options=options) as csv:
                yield csv.write_table
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def report_counts(counts: RecommendCounts, out: Path) -> None:
    """What was done, on the terminal."""
    rate = counts.users / counts.seconds if counts.seconds else 0.0
    console.print(f"{counts.users:,} users in {counts.seconds:.1f} s ({rate:,.0f} a second) → {out}", markup=False)
    if counts.index is not None and counts.index["recall"] is not None:
        console.print(
            f"the index finds {counts.index['recall']:.1%} of the exact {counts.index['k']} best "
            f"({counts.index['of']:,} users compared; index_effort=N finds more); "
            f"it was built in {counts.index['build_seconds']:.1f} s",
            markup=False,
        )
    if counts.unknown_items:
        share = counts.unknown_items / max(1, counts.items)
        console.print(
            f"unknown to the student: {counts.unknown_items:,} of {counts.items:,} items of the histories "
            f"({share:.1%}), {counts.example!r} for one; {counts.left_out:,} users left out, {counts.popular:,} got "
            "what is popular",
            markup=False,
        )
