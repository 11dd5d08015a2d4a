"""What each `run_*` command does with its stages, as plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from src.core.logging import console, epoch_bar, get_logger
from src.core.result_files import BEST_STUDENT, TEACHER, TEACHER_CHECK, TEACHER_OUTPUTS, metrics_file
from src.core.training import FitResult
from src.core.watching import training
from src.data.dataset import format_statistics
from src.data.describe import describe, format_description
from src.distill.data_bridge import align, export_dllm2rec
from src.distill.settings import taught_student
from src.distill.trainer_distill import DistillRun, train_distilled
from src.pipeline.model_comparison import (
    EvaluatedModel,
    ModelComparison,
    closed_form_models,
    write_comparison,
    write_segments,
)
from src.pipeline.run_folder import RunFolder
from src.pipeline.settings import training_seed
from src.pipeline.stages import Stages
from src.pipeline.student_stages import fit_of
from src.pipeline.tracking import Tracker, tracker_for, write_curves
from src.student.artefact import save_student
from src.student.models import require_network

_log = get_logger(__name__)

BASELINE = "baseline"
#: targets up to which a run begins with the whole description: of more it would take longer than reading them again
DESCRIBED = 2_000_000


def tracker_of(stages: Stages, folder: RunFolder) -> Tracker:
    """The tracker that this run's curves go to."""
    return tracker_for(stages.settings.runtime.tracking, folder.path)


def describe_data(stages: Stages) -> None:
    """What the dataset is like, and what of it matters, on the terminal; of a very large one the counts alone."""
    data = stages.data
    if len(data.train) + len(data.validation) <= DESCRIBED:
        console.print(format_description(describe(data)), markup=False)
        return
    told = "python -m src.exp.describe, with the same dataset keys, tells more"
    console.print(f"{format_statistics(data)}\n{told}", markup=False)


def baseline_model(stages: Stages) -> EvaluatedModel:
    """The student trained alone."""
    return EvaluatedModel(BASELINE, partial(stages.load_student, stages.baseline))


def run_student_baseline(stages: Stages, folder: RunFolder) -> None:
    """Train the student alone; compare it with popularity on validation."""
    describe_data(stages)
    record = stages.baseline
    folder.copy_folder(record.folder, BEST_STUDENT)
    write_curves(tracker_of(stages, folder), "student_baseline", fit_of(record).history)
    comparison = ModelComparison(stages, [*closed_form_models(stages), baseline_model(stages)], with_teacher=False)
    _finish_with_validation(stages, folder, comparison, "student_baseline", {"student": fit_summary(fit_of(record))})


def run_teacher(stages: Stages, folder: RunFolder, export: bool) -> None:
    """Train the teacher and label; compare it with the student on a validation sample.

    Args:
        stages: build what is needed, or take it from the cache.
        folder: gets the teacher, its outputs and the tables.
        export: whether the outputs are also written as DLLM2Rec reads them.
    """
    describe_data(stages)
    run_teacher_check(stages, folder)
    outputs = stages.outputs
    folder.copy_folder(stages.teacher.folder, TEACHER)
    folder.copy_folder(stages.outputs_record.folder, TEACHER_OUTPUTS)
    if export:
        export_dllm2rec(folder.path / "dllm2rec", outputs, stages.data.train)
    comparison = ModelComparison(stages, [*closed_form_models(stages), baseline_model(stages)], with_teacher=True)
    _finish_with_validation(stages, folder, comparison, "teacher", teacher_facts(stages))


def run_distill(stages: Stages, folder: RunFolder) -> None:
    """Train one student with the teacher; compare it with the baseline on validation."""
    describe_data(stages)
    run = distil(stages)
    folder.stopwatch.add("distill_student_train_time", run.fit.seconds)
    data, settings = stages.data, stages.settings
    extra = {"fit": asdict(run.fit)}
    place, source = folder.path / BEST_STUDENT, stages.text_source
    own = taught_student(require_network(settings.student), settings.distill)
    save_student(place, run.student, own, data.id_map, data.fingerprints(), extra, source)
    models = [
        *closed_form_models(stages),
        baseline_model(stages),
        EvaluatedModel("distilled", lambda: run.student.eval()),
    ]
    comparison = ModelComparison(stages, models, with_teacher=stages.uses_own_teacher)
    _finish_with_validation(
        stages, folder, comparison, "distill", {"student": fit_summary(run.fit), **teacher_facts(stages)}
    )


def distil(stages: Stages) -> DistillRun:
    """The configured student, taught by the teacher's outputs."""
    settings = stages.settings
    teaching = align(stages.outputs, stages.data.train, stages.outputs.candidates.shape[1], stages.device)
    teaching.require(settings.distill.candidate_topk)
    student = require_network(settings.student)
    with training("distilled"), epoch_bar("distillation", student.loop.epochs, student.loop.monitor) as report:
        return train_distilled(
            student,
            settings.distill,
            settings.active,
            settings.evaluation,
            stages.taught_data,
            teaching,
            training_seed(settings),
            report,
        )


def fit_summary(fit: FitResult) -> dict[str, Any]:
    """What a manifest says about a training."""
    return {
        "epochs": fit.epochs,
        "best_epoch": fit.best_epoch,
        "rows_trained": fit.rows_trained,
        "seconds": fit.seconds,
        "validation": fit.best_metrics,
    }


def teacher_facts(stages: Stages) -> dict[str, Any]:
    """Rows trained, rows labelled, epochs and gate entropy of the teacher, or where its outputs came from."""
    labelled = {"rows_labelled": len(stages.outputs), "rows_in_training_split": len(stages.data.train)}
    if not stages.uses_own_teacher:
        distill = stages.settings.distill
        source = {"teachers": ", ".join(distill.teachers)}
        if distill.outputs_from is not None:
            source["outputs_from"] = str(distill.outputs_from)
        return {"teacher": {**source, **labelled}}
    return {"teacher": {**stages.teacher_summary, **labelled}}


def run_teacher_check(stages: Stages, folder: RunFolder) -> None:
    """Tell before rows are labelled whether distilling from this teacher is likely to help; kept in `metrics/`."""
    if not stages.uses_own_teacher:
        return
    if stages.llm_is_gone:
        kept = metrics_file(folder.path, TEACHER_CHECK).exists()
        _log.warning("teacher check: %s, since %s", "that of before is kept" if kept else "left out", stages.why_gone)
        return
    found = stages.check_teacher()
    folder.write_metrics(TEACHER_CHECK, found.as_dict())
    _log.info("teacher check: %s", found.sentence())


def show_teacher(facts: Mapping[str, Any]) -> None:
    """The teacher's facts in the log file."""
    shown = {name: value for name, value in facts["teacher"].items() if isinstance(value, (int, float, str))}
    words = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()]
    _log.debug("teacher: %s", ", ".join(words))


def _finish_with_validation(
    stages: Stages, folder: RunFolder, comparison: ModelComparison, kind: str, facts: Mapping[str, Any]
) -> None:
    """The validation table, the times, and the manifest last."""
    if "teacher" in facts:
        show_teacher(facts)
    ranked = comparison.validation()
    ks = stages.settings.evaluation.ks
    title = f"validation (the test split stays closed); {comparison.repeated:.1%} of its targets were met before"
    write_comparison(folder, comparison.rows(ranked), ranked, ks, title)
    write_segments(folder, comparison, ranked, BASELINE)
    finish_run(stages, folder, kind, facts)


def finish_run(
    stages: Stages,
    folder: RunFolder,
    kind: str,
    facts: Mapping[str, Any],
    last: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Write the times of all stages and the manifest.

    Args:
        stages: say which artefacts were used, and which of them were reused.
        folder: the result folder.
        kind: the command, as the manifest names it.
        facts: what else the manifest says.
        last: is given the manifest before it is written.
    """
    folder.record_stage_times(stages.cache.records)
    artefacts = {record.name: record.key for record in stages.cache.records}
    reused = [record.name for record in stages.cache.records if record.reused]
    fingerprints = {**stages.data.fingerprints(), **artefacts}
    folder.finish(kind, stages.settings.seed, fingerprints, {"reused_stages": reused, **facts}, last)
