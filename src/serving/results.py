"""What a finished result folder tells about its student: the model, its data, and what was measured."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from src.core.documents import read_document, read_yaml_mapping
from src.core.errors import ArtefactError, ConfigError, ProblemsFound
from src.core.paths import require_finished
from src.core.result_files import BEST_STUDENT, COMPARISON, SETTINGS_FILE
from src.data.dataset import load_dataset
from src.data.examples import SequenceData
from src.data.settings import DatasetSettings
from src.student.artefact import fingerprints_of

_NAME_A_RESULT = "name a result of run_student_baseline, run_distill, tune_student or tune_distill"


def comparison_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a result's `comparison.csv` as text; none where nothing was compared.

    Raises:
        ArtefactError: the file is no table of text.
    """
    path = folder / COMPARISON
    if not path.is_file():
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(read_document(path, _NAME_A_RESULT), newline="")))
    except csv.Error as error:
        raise ArtefactError.one("file", str(path), f"is no table ({error})", _NAME_A_RESULT) from None
    if longer := [number for number, row in enumerate(rows, start=2) if None in row]:
        rule = f"has more values in line {longer[0]} than columns"
        raise ArtefactError.one("file", str(path), rule, _NAME_A_RESULT)
    return rows


@dataclass(frozen=True, eq=False)
class StudentResult:
    """A finished result that holds a student. ``comparison``: its rows as text, none where nothing was compared."""

    folder: Path
    manifest: dict[str, Any]
    comparison: list[dict[str, str]]

    @classmethod
    def read(cls, folder: Path, field: str = "result") -> StudentResult:
        """Raises ``ArtefactError`` for a folder that is missing, unfinished, or holds no student."""
        manifest = require_finished(folder)
        if not (folder / BEST_STUDENT).is_dir():
            raise ArtefactError.one(field, str(folder), f"holds no {BEST_STUDENT}", _NAME_A_RESULT)
        require_finished(folder / BEST_STUDENT)
        return cls(folder, manifest, comparison_rows(folder))

    @property
    def student(self) -> Path:
        """The folder of its student."""
        return self.folder / BEST_STUDENT

    def load_data(self) -> SequenceData:
        """The dataset that the student was trained on, read again.

        Raises:
            ArtefactError: the result does not say which, or the source holds other data by now.
            ConfigError: it names an adapter whose code came with it, which is not run.
            DataError: the source cannot be read.
        """
        data = load_dataset(self._dataset())
        wanted, found = fingerprints_of(self.student), data.fingerprints()
        changed = [name for name in wanted if name in found and wanted[name] != found[name]]
        if changed:
            rule = f"has another {changed[0]} by now than the student was trained on"
            raise ArtefactError.one("dataset", data.name, rule, "restore the data, or train again")
        return data

    def _dataset(self) -> DatasetSettings:
        path = self.folder / SETTINGS_FILE
        content = read_yaml_mapping(path, _NAME_A_RESULT)
        try:
            return TypeAdapter(DatasetSettings).validate_python(content["dataset"])
        except (KeyError, TypeError, ValidationError) as error:
            rule = f"does not tell the dataset of this result ({type(error).__name__})"
            raise ArtefactError.one("result", str(path), rule, _NAME_A_RESULT) from None

    def data_or_none(self) -> tuple[SequenceData | None, str]:
        """The dataset, or None and why it cannot be read."""
        try:
            return self.load_data(), ""
        except ProblemsFound as error:
            return None, str(error)


def require_given(field: str, value: Path | None, step: str) -> Path:
    """A path that the command cannot do without.

    Args:
        field: the argument's name.
        value: what was given.
        step: how it is given.

    Raises:
        ConfigError: it was not.
    """
    if value is None:
        raise ConfigError.one(field, None, "is needed", step)
    return value
