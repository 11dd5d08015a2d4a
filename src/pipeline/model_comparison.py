"""Models side by side. Validation may be looked at by anyone; the test split is opened here, once a run, and logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.core.errors import ConfigError
from src.core.logging import console, get_logger
from src.core.paths import write_text
from src.core.result_files import CANDIDATES, COMPARISON, RANKS, SEGMENTS
from src.data.candidates import CandidateLists, save_candidates
from src.data.examples import Examples, sample
from src.data.tensor_examples import TensorExamples
from src.evaluation.comparison import (
    ComparisonRow,
    ModelRanks,
    as_frame,
    as_table,
    comparison_row,
    missing_row,
    ranks_frame,
)
from src.evaluation.segments import ExampleFacts, segments_frame
from src.pipeline.run_folder import RunFolder
from src.pipeline.split_evaluation import evaluate_split, facts_of, repeated_share
from src.pipeline.stages import Stages
from src.pipeline.student_stages import tried_for
from src.student.evaluator import Score
from src.student.settings import EvaluationSettings

if TYPE_CHECKING:
    from src.teacher.operations.inference import TrainedTeacher
    from src.teacher.operations.teacher_check import RankedExamples

_log = get_logger(__name__)

_TEACHER = "teacher"


@dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """A scorer with a name, and how many configurations were tried to find it.

    ``load`` gives the scorer. What lies on disk is read each time and held by nobody else, so that of many models one
    at a time is in memory.
    """

    name: str
    load: Callable[[], Score]
    trials: int = 1


@dataclass(frozen=True)
class MissingModel:
    """A model that a reader would look for and that cannot be computed here: ``reason`` stands in its row."""

    name: str
    reason: str


@dataclass
class ModelComparison:
    """Ranks the ``listed`` models on the splits that it is shown, and gives a row to those that are missing, too.

    ``teacher`` stands in for the experiment's own one, which is among the missing where its language model is gone. The
    lists over which a teacher's answers were judged are kept in ``lists`` by split.
    """

    stages: Stages
    listed: Sequence[EvaluatedModel | MissingModel]
    with_teacher: bool
    teacher: TrainedTeacher | None = None
    lists: dict[str, CandidateLists] = field(default_factory=dict)
    #: how the teacher ranked its sample of each split
    teacher_rankings: dict[str, RankedExamples] = field(default_factory=dict)
    #: what is known about the examples of each split that was ranked as a whole
    facts: dict[str, ExampleFacts] = field(default_factory=dict)

    @property
    def models(self) -> list[EvaluatedModel]:
        """The listed models that can be ranked."""
        return [model for model in self.listed if isinstance(model, EvaluatedModel)]

    @property
    def _lacks_teacher(self) -> bool:
        return self.with_teacher and self.teacher is None and self.stages.llm_is_gone

    @cached_property
    def repeated(self) -> float:
        """Share of validation targets that their user had met before: it decides which figures lead."""
        return repeated_share(self.stages.data.validation)

    def validation(self) -> list[ModelRanks]:
        """Every model on validation, the teacher on its sample."""
        data, settings = self.stages.data, self.stages.settings.teacher
        return self.rank("validation", data.validation, settings.validation_rows)

    def test(self, folder: RunFolder, reason: str, judged: str, again: bool = False) -> list[ModelRanks]:
        """The same on the test split, which this opens (see `SealedExamples.open`)."""
        data = self.stages.data
        examples = data.test.open(reason, folder.test_record, judged, again)
        ranked = self.rank("test", examples, self.stages.settings.teacher.test_rows)
        for split, lists in self.lists.items():
            save_candidates(folder.path / CANDIDATES / split, lists, data.fingerprints())
        return ranked

    def rank(self, split: str, examples: Examples, teacher_rows: int) -> list[ModelRanks]:
        """Every model on a split, the teacher on a sample of it.

        Args:
            split: the name of the split.
            examples: all of the split.
            teacher_rows: how many of them the teacher ranks.
        """
        stages = self.stages
        self.facts[split] = facts_of(examples, stages.data)
        ranked = rank_models(self.models, split, examples, stages, stages.settings.evaluation, self.repeated)
        if self.with_teacher and not self._lacks_teacher:
            ranked += self._teacher(split, sample(examples, teacher_rows, stages.settings.seed, split), ranked)
        return ranked

    def _teacher(self, split: str, shown: Examples, others: Sequence[ModelRanks]) -> list[ModelRanks]:
        """The teacher on a sample, and every model on the same examples, so that they can be set side by side."""
        evaluation = self.stages.settings.evaluation
        ranking = self.teacher.ranking(shown, evaluation) if self.teacher else self.stages.teacher_ranking(shown)
        self.teacher_rankings[split] = ranking
        if ranking.candidates is not None:
            self.lists[split] = ranking.candidates
        own = ModelRanks.of(_TEACHER, f"{split} sample", shown, ranking.ranks, ranking.answer_metrics())
        restricted = [other.on(own) for other in others]
        return [own, *restricted]

    def rows(self, ranked: Sequence[ModelRanks]) -> list[ComparisonRow]:
        """Metrics of each ranking, and the rows of the missing models."""
        trials = {model.name: model.trials for model in self.models}
        rows = [comparison_row(r, self.stages.settings.evaluation.ks, trials.get(r.model, 1)) for r in ranked]
        teacher = [MissingModel(_TEACHER, self.stages.why_gone)] if self._lacks_teacher else []
        return [*rows, *missing_rows([*self.listed, *teacher], ranked)]


def rank_models(
    models: Sequence[EvaluatedModel],
    split: str,
    examples: Examples,
    stages: Stages,
    evaluation: EvaluationSettings,
    repeated: float,
) -> list[ModelRanks]:
    """Rank every example of a split by each model.

    Args:
        models: what is ranked by.
        split: its name in the tables.
        examples: all of the split.
        stages: for the device and the items' counts in training.
        evaluation: cut-offs and masking.
        repeated: share of validation targets that their user had met before (see `evaluate_split`).
    """
    tensors = TensorExamples.of(examples, stages.device)
    ranked = []
    for model in models:
        # the scorer has no name here, so that it is gone before the next one is read
        found = evaluate_split(model.load(), tensors, evaluation, repeated)
        more = found.more(evaluation, stages.data.item_counts)
        ranked.append(ModelRanks.of(model.name, split, examples, found.official(evaluation), more))
    return ranked


def closed_form_models(stages: Stages) -> list[EvaluatedModel | MissingModel]:
    """The models without gradient descent, each at the best of its tried settings, or why the catalogue forbids it."""
    found: list[EvaluatedModel | MissingModel] = []
    for name in stages.closed_form_names:
        try:
            record = stages.closed_form(name)
        except ConfigError as error:
            reason = "; ".join(f"{problem.rule} ({problem.field} = {problem.value})" for problem in error.problems)
            _log.warning("%s is missing in the tables: %s", name, reason)
            found.append(MissingModel(name, reason))
            continue
        found.append(EvaluatedModel(name, partial(stages.load_student, record), tried_for(record)))
    return found


def missing_rows(listed: Sequence[EvaluatedModel | MissingModel], ranked: Sequence[ModelRanks]) -> list[ComparisonRow]:
    """The rows of the missing ones among some models: one for each split that the others are ranked on."""
    missing, splits = [model for model in listed if isinstance(model, MissingModel)], [one.split for one in ranked]
    return [missing_row(model.name, split, model.reason) for split in dict.fromkeys(splits) for model in missing]


def write_comparison(
    folder: RunFolder, rows: Sequence[ComparisonRow], ranked: Sequence[ModelRanks], ks: Sequence[int], title: str
) -> None:
    """The files of `write_tables`, and the table on the terminal.

    Args:
        folder: where the files are written.
        rows: the table's lines, one a model and split.
        ranked: each model's ranks of the targets.
        ks: the cut-offs K that the terminal shows.
        title: stands above the terminal's table.
    """
    write_tables(folder, rows, ranked)
    console.print(as_table(rows, ks, title))


def write_segments(
    folder: RunFolder,
    comparison: ModelComparison,
    ranked: Sequence[ModelRanks],
    reference: str,
    owners: Mapping[str, str] | None = None,
) -> None:
    """`segments.csv`: NDCG at the largest K and its paired gain over ``reference``, by segment of each whole split.

    Args:
        folder: where the file is written.
        comparison: knows the examples of each split.
        ranked: each model's ranks of the targets.
        reference: the model that the others' gains are over.
        owners: whose seed a model is, by model; None: each stands for itself.
    """
    settings = comparison.stages.settings
    frames = []
    for split, facts in comparison.facts.items():
        ranks: dict[str, list[NDArray[np.int64]]] = {}
        for one in ranked:
            if one.split == split:
                ranks.setdefault(owners[one.model] if owners else one.model, []).append(one.ranks.numpy())
        stacked = {name: np.stack(values) for name, values in ranks.items()}
        frame = segments_frame(stacked, facts, reference, max(settings.evaluation.ks), settings.seed)
        frames.append(frame.assign(split=split))
    write_text(folder.path / SEGMENTS, pd.concat(frames).to_csv(index=False))


def write_tables(folder: RunFolder, rows: Sequence[ComparisonRow], ranked: Sequence[ModelRanks]) -> None:
    """`comparison.csv`, `ranks.csv`, one JSON a model under `metrics/`.

    Args:
        folder: where the files are written.
        rows: the lines of `comparison.csv`, one a model and split.
        ranked: each model's ranks of the targets.
    """
    write_text(folder.path / COMPARISON, as_frame(rows).to_csv(index=False))
    write_text(folder.path / RANKS, ranks_frame(ranked).to_csv(index=False))
    for model in dict.fromkeys(r.model for r in rows if not r.missing):
        by_split = {r.split: {"examples": r.examples, **r.metrics} for r in rows if r.model == model}
        folder.write_metrics(model, by_split)
