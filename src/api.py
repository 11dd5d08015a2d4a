"""The second way in: the same search from Python, on a table that is in memory.

    data = Dataset.from_dataframe(frame, user="customer", item="sku", time="bought_at", title="name")
    result = tune_distill(data, teacher="linear", trials=10)
    result.best_student.recommend([["A1", "B2"]], k=5)

A table becomes files that the command line can read, and a result is a folder that it understands: a search that was
begun here can be resumed, compared and exported there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from src.core.data_utils import fingerprint
from src.core.documents import read_yaml_mapping
from src.core.errors import ConfigError, DataError, Problem
from src.core.paths import atomic_folder, require_finished, require_writable
from src.core.result_files import BEST_PARAMS, COMPARISON, FAIR, JOURNAL, REPORT, VERDICT, metrics_file
from src.data.dataset import load_dataset
from src.data.examples import SequenceData
from src.data.frames import atomic_files
from src.data.settings import DatasetSettings
from src.data.tables import from_memory
from src.evaluation.result_tables import read_comparison
from src.evaluation.verdict import read_sentences
from src.serving.catalogue import padded
from src.serving.export import ExportStudentSettings, check_export, export_student
from src.serving.new_items import add_items, read_new_items, require_takes_items
from src.serving.students import ServedStudent, open_student, require_k
from src.tuning.fair_document import load_answer

__all__ = ["Dataset", "Result", "Student", "tune_distill"]

#: where tables are kept as files, beside the other things that can be made again
_TABLES = Path("data/cache/tables")


@dataclass(frozen=True)
class Dataset:
    """A log of interactions, on disk. ``settings``: those of `dataset.*` that say where it lies and how it is split."""

    settings: DatasetSettings

    @classmethod
    def from_dataframe(
        cls,
        frame: Any,
        user: str = "user",
        item: str = "item",
        time: str = "time",
        title: str | None = None,
        rating: str | None = None,
        time_format: str | None = None,
        name: str = "table",
        folder: Path | None = None,
        **settings: Any,
    ) -> Dataset:
        """A dataset from a table with a row for each interaction.

        Args:
            frame: a pandas, polars or pyarrow table.
            user: the column of users, of any type.
            item: the column of items, of any type.
            time: the column of times: numbers, dates, or text that holds either, read as ``dataset=table`` reads them.
            title: the column of the items' titles; an item has the first that it is given.
            rating: the column of ratings, which ``min_rating`` reads.
            time_format: how dates are written, as ``strptime`` has it; None: found from the values.
            name: what tables and reports call the dataset.
            folder: where its files go; by default a folder below ``data/cache/tables`` that its content names.
            **settings: other fields of `dataset`, for example ``window``, ``split`` or ``min_rating``.

        Raises:
            ConfigError: a column is not there, or a setting breaks a rule.
            DataError: it is no table or holds no rows, a value is missing, a time cannot be read, or an id holds a tab
                or a line break.
        """
        wanted = {"user": user, "item": item, "time": time, "title": title, "rating": rating}
        if absent := [role for role in ("user", "item", "time") if wanted[role] is None]:
            rule = "names no column, and every interaction has one"
            raise ConfigError.one(absent[0], None, rule, f"{absent[0]}=NAME")
        columns = {role: column for role, column in wanted.items() if column is not None}
        if rating is None and settings.get("min_rating") is not None:
            raise ConfigError.one("rating", None, "min_rating compares with it", "name its column: rating=NAME")
        log, items = atomic_files(frame, columns, time_format)
        place = (folder or _TABLES / fingerprint(name, log, items)).resolve()
        found = _dataset_settings(adapter="recbole", name=name, root=place, **settings)
        with atomic_folder(place, replace=folder is not None) as target:
            (target / f"{name}.inter").write_text(log, encoding="utf-8", newline="\n")
            (target / f"{name}.item").write_text(items, encoding="utf-8", newline="\n")
        return cls(found)

    @cached_property
    def sequences(self) -> SequenceData:
        """Its histories and targets, split into training, validation and (sealed) test examples."""
        return load_dataset(self.settings)

    def __str__(self) -> str:
        from src.data.dataset import format_statistics

        return format_statistics(self.sequences)


def _dataset_settings(**values: Any) -> DatasetSettings:
    """Settings of a dataset; raises ``ConfigError`` with every field that is wrong."""
    try:
        return DatasetSettings(**values)
    except ValidationError as error:
        found = [Problem(f"dataset.{'.'.join(map(str, e['loc']))}", e["input"], e["msg"]) for e in error.errors()]
        raise ConfigError(found) from None


@dataclass(frozen=True, eq=False)
class Student:
    """A finished student. ``folder``: an exported folder, or the result that it comes from; ``grown``: whether items
    were added that the folder does not know.
    """

    folder: Path
    grown: bool = False

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Student:
        """The student of an exported folder or of a result; raises ``ArtefactError`` where there is none."""
        student = cls(Path(folder).resolve())
        _ = student.opened
        return student

    @cached_property
    def opened(self) -> ServedStudent:
        """The student that answers, read from its folder when it is first asked."""
        return open_student(self.folder)

    def recommend(
        self, histories: Iterable[Iterable[object]], k: int = 10, exclude_seen: bool = True, unknown: str = "skip"
    ) -> pd.DataFrame:
        """The best items for each history.

        Args:
            histories: raw item ids, oldest first.
            k: how many items for each; fewer come back where less is left.
            exclude_seen: never recommend what is in the history.
            unknown: ``skip`` leaves ids out that the student does not know, ``refuse`` raises.

        Returns:
            Columns ``history`` (which one, from 0), ``rank`` (from 1), ``item``, ``title``, ``score``.

        Raises:
            ArtefactError: the student's scores are no numbers.
            ConfigError: ``k`` is below 1 or above the catalogue, ``unknown`` is neither, or ``histories`` are no lists.
            DataError: an id is unknown and ``unknown="refuse"``.
        """
        if unknown not in ("skip", "refuse"):
            raise ConfigError.one("unknown", unknown, "must be skip or refuse")
        if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
            raise ConfigError.one("k", k, "must be a whole number from 1 on", "k=10")
        given = _as_lists(histories)
        student = self.opened
        require_k(student, k)
        found = [student.catalogue.known(history) for history in given]
        missing = [raw for _, ids in found for raw in ids]
        if missing and unknown == "refuse":
            rule = f"{len(missing)} ids are unknown to the student"
            raise DataError.one("histories", missing[0], rule, 'leave them out, or use unknown="skip"')
        rows = []
        if found:
            seen = padded([known for known, _ in found], student.catalogue.num_items)
            items, scores = student.best(*seen, k, exclude_seen)
            for place, best in enumerate(zip(items, scores, strict=True)):
                named = enumerate(student.named(*best), start=1)
                rows += [(place, rank, one.item, one.title, one.score) for rank, one in named]
        return pd.DataFrame(rows, columns=["history", "rank", "item", "title", "score"])

    def with_items(self, items: Any, item: str = "item", encoder: str = "") -> Student:
        """The same student with items that came after training, scored from their texts.

        Args:
            items: a table with a row an item: its id, ``title``, and the other fields that the texts are made of.
            item: the column of ids.
            encoder: where the language model lies that the student was trained with; empty: where it lay then.

        Raises:
            ConfigError: the student reads no text, the language model is another one, or a column is not there.
            DataError: an item is known already, or has no title.
        """
        from src.pipeline.new_texts import text_embedder

        student = open_student(self.folder, growing=True)
        source = require_takes_items(student)
        new = read_new_items(from_memory("items", items), student.catalogue, source, item)
        grown = Student(self.folder, grown=True)
        grown.__dict__["opened"] = add_items(student, new, text_embedder(encoder))
        return grown

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the student's folder; raises ``ConfigError`` where something is there already."""
        self._require_as_saved()
        return _copy(self.folder, Path(folder))

    def _require_as_saved(self) -> None:
        if self.grown:
            rule, step = "does not hold the items that were added", "python -m src.exp.export result=… new_items=FILE"
            raise ConfigError.one("student", str(self.folder), rule, step)

    def to_onnx(self, folder: str | os.PathLike[str], quantise: str = "none") -> Path:
        """Export the student as `python -m src.exp.export` does.

        Args:
            folder: which must not exist.
            quantise: ``none`` or ``int8``.

        Raises:
            ConfigError: the folder exists, or the data that ``int8`` is measured on cannot be read.
            ArtefactError: the student is an exported one already.
        """
        self._require_as_saved()
        if quantise not in ("none", "int8"):
            raise ConfigError.one("quantise", quantise, "must be none or int8")
        settings = ExportStudentSettings(result=self.folder, out=Path(folder).resolve(), quantise=quantise)  # type: ignore[arg-type]
        place = Path(folder).resolve()
        export_student(settings, check_export(settings), place)
        return place


def _as_lists(histories: Iterable[Iterable[object]]) -> list[list[object]]:
    """Histories, of which each may be gone through once; raises ``ConfigError`` for one in place of several, and for
    tables.
    """
    rule, step = "must be a list with a list of item ids for each user", 'histories=[["a1", "b2"], ["c3"]]'
    if isinstance(histories, (str, bytes)) or hasattr(histories, "columns") or not isinstance(histories, Iterable):
        raise ConfigError.one("histories", type(histories).__name__, rule, step)
    given = []
    for history in histories:
        if isinstance(history, (str, bytes)) or not isinstance(history, Iterable):
            raise ConfigError.one("histories", history, rule, step)
        given.append(list(history))
    return given


@dataclass(frozen=True, eq=False)
class Result:
    """A finished search: its folder, and what is in it."""

    folder: Path
    manifest: Mapping[str, Any] = field(repr=False)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Result:
        """A result of this machine or another; raises ``ArtefactError`` for one that is missing or unfinished."""
        place = Path(folder).resolve()
        return cls(place, require_finished(place))

    @cached_property
    def comparison(self) -> pd.DataFrame:
        """Every model on validation and on the test split; raises ``ArtefactError`` where it cannot be read."""
        return read_comparison(self.folder / COMPARISON)

    @property
    def study(self) -> Path:
        """The journal of the Optuna study."""
        return self.folder / JOURNAL

    @property
    def report(self) -> Path:
        """The page that tells everything."""
        return self.folder / REPORT

    @cached_property
    def best_params(self) -> dict[str, Any]:
        """The winner's settings, by their dotted names; raises ``ArtefactError`` where they cannot be read."""
        return read_yaml_mapping(self.folder / BEST_PARAMS)

    @cached_property
    def verdicts(self) -> list[str]:
        """Whether what was searched helped on the test split, in sentences; with ``protocol=fair`` for each arm.

        Empty for a result that compares nothing; raises ``ArtefactError`` for a file that is damaged.
        """
        if (fair := self.folder / FAIR).is_file():
            return [line["sentence"] for line in load_answer(fair).get("comparisons", [])]
        single = metrics_file(self.folder, VERDICT)
        return read_sentences(single) if single.is_file() else []

    @cached_property
    def best_student(self) -> Student:
        """The student that won."""
        return Student.load(self.folder)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Copy the whole result; raises ``ConfigError`` where something is there already."""
        return _copy(self.folder, Path(folder))


def _copy(source: Path, target: Path) -> Path:
    target = target.resolve()
    if os.path.lexists(target):
        raise ConfigError.one("folder", str(target), "exists", "name a new folder")
    require_writable(target, "folder")
    with atomic_folder(target) as filled:
        shutil.copytree(source, filled, dirs_exist_ok=True)
    return target


def tune_distill(
    data: Dataset,
    teacher: str = "tiny",
    trials: int = 20,
    student: str = "transformer",
    settings: Mapping[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> Result:
    """Train teacher and students and search for the best distillation, as `python -m src.exp.tune_distill` does.

    Args:
        data: what to learn from.
        teacher: a language model of `conf/teacher`, or a teacher without one: ``self``, or a model in closed form.
        trials: configurations to try; with ``protocol`` ``fair`` of each arm.
        student: one of `conf/student`.
        settings: other keys of the command line, for example ``{"student.loop.epochs": 20}``.
        folder: the result's; by default one in ``result/`` that tells the time.

    Raises:
        ConfigError: every problem of the settings, before anything is trained.
        TrainingFailed: training cannot go on.
    """
    # Hydra, Ray and Optuna: what only reads results does without them
    from src.config.composition import RUN_DIR, groups
    from src.config.overrides import format_value
    from src.core.logging import log_to
    from src.distill.settings import terms
    from src.distill.teachers import TITLES
    from src.exp.tune_distill import ENTRY
    from src.student.models import require_network, student_settings

    if not isinstance(data, Dataset):
        step = 'data=Dataset.from_dataframe(frame, user="…", item="…", time="…")'
        raise ConfigError.one("data", type(data).__name__, "must be a Dataset", step)
    of_llm = teacher in groups(ENTRY.config_name)["teacher"]
    keys: dict[str, Any] = {} if of_llm else {"distill.teachers": [teacher]}
    keys |= {f"dataset.{name}": value for name, value in _changed(data.settings).items()}
    if not of_llm and teacher != TITLES:  # such a teacher has no embeddings
        reading = (term for term in terms() if term.needs_embeddings or term.needs_texts)
        alone = require_network(student_settings(student))
        keys |= {f"distill.{key}": value for term in reading for key, value in term.off(alone).items()}
    keys |= {"trials": trials, **(settings or {})}
    if folder is not None:
        keys[RUN_DIR] = str(Path(folder).resolve())
    chosen = ["dataset=recbole", f"student={student}", *([f"teacher={teacher}"] if of_llm else [])]
    try:
        return Result.load(ENTRY.call([*chosen, *(f"{key}={format_value(value)}" for key, value in keys.items())]))
    finally:
        log_to(None)


def _changed(settings: DatasetSettings) -> dict[str, Any]:
    """The fields that say something else than the defaults, as the command line takes them."""
    standard = DatasetSettings()
    names = (name for name in DatasetSettings.__dataclass_fields__ if name != "adapter")
    changed = {name: getattr(settings, name) for name in names if getattr(settings, name) != getattr(standard, name)}
    return {name: str(value) if isinstance(value, Path) else value for name, value in changed.items()}
