"""What makes a search the same search: its settings, its space, and the content that its trials learn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from src.core.data_utils import fingerprint
from src.core.result_files import JOURNAL
from src.data.teacher_outputs import OutputsByTeachers, TeacherOutputs
from src.pipeline.settings import ExperimentSettings, without_paths
from src.pipeline.stages import Stages
from src.tuning.journal import read_journal
from src.tuning.search_space import SearchSpace, Stage
from src.tuning.settings import TuningSettings
from src.tuning.study import require_content


def identity_of(experiment: ExperimentSettings, space: SearchSpace, tuning: TuningSettings) -> str:
    """A fingerprint of what a search is: it can be resumed by a command that has the same one.

    Args:
        experiment: the settings of the trials; where data and models lie makes no difference.
        space: what is searched.
        tuning: of it count the rules by which trials come and end.
    """
    rules = [
        tuning.sampler, tuning.seed, tuning.startup_trials, tuning.pruner, tuning.pruner_startup_trials,
        tuning.pruner_warmup_epochs, tuning.reduction_factor,
    ]  # fmt: skip
    shape = {key: str(parameter) for key, parameter in space.parameters.items()}
    described = {"stage": space.stage, "objectives": list(space.objectives.items()), "space": shape}
    return fingerprint(described, without_paths(experiment), rules)


def content_of(stages: Stages, outputs: OutputsByTeachers) -> dict[str, str]:
    """Fingerprints of what trials learn from: the data and all that each teacher says."""
    taught = {f"teacher outputs ({name})": _said(found) for name, found in outputs.items()}
    text = {} if stages.item_text is None else {"texts of items": fingerprint(stages.item_text)}
    return {**stages.data.fingerprints(), **taught, **text}


def _said(outputs: TeacherOutputs) -> str:
    # a saved folder's files were fingerprinted when they were written, and looked at when they were read
    if files := outputs.manifest.get("files"):
        return fingerprint(files)
    return fingerprint(
        outputs.example_id, outputs.candidates, outputs.distances, outputs.sequence_embedding, outputs.item_embedding
    )


def searched_content(stage: Stage, stages: Stages, outputs: OutputsByTeachers) -> dict[str, str]:
    """`content_of` of a search; a search over the teacher learns from the language model, too.

    Args:
        stage: what is searched.
        stages: the data and models.
        outputs: the teachers' labels, by teacher.
    """
    content = content_of(stages, outputs)
    if stage == "teacher":
        from src.teacher.backbone.model_fingerprint import (
            fingerprint_llm,  # imports transformers: only such a search waits for it
        )

        content["language model"] = fingerprint_llm(stages.llm_folder)
    return content


def check_content(folder: Path, content: Mapping[str, str]) -> None:
    """Look at a search that was begun here, before anything is trained for it.

    Raises ``ArtefactError`` when it was started with other content, or when its journal is damaged.
    """
    if not (folder / JOURNAL).is_file():
        return
    storage = read_journal(folder / JOURNAL)
    for study in storage.get_all_studies():
        require_content(study.study_name, study.user_attrs, content)
