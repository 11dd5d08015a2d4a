"""Whatever stands in a file, reading it gives what was saved, or an error of this project's family: nothing else.

Every kind of artefact is damaged `TOTAL` times in all, in bytes and in values. What is `EXACT` carries a fingerprint:
it comes back equal or not at all. What is `STATED` may be edited by a person and carries none: it comes back as an
independent reading of the file says. What is `SOUND` comes back in the right types, ready for use.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import optuna
import pytest
import torch
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from pydantic import TypeAdapter

from src.api import Result
from src.cli.resume import RESUMABLE, read_begun, read_resumed
from src.config.overrides import expand_params
from src.config.reading import read_settings
from src.core.checkpoints import pack, unpack
from src.core.errors import AnyoError, ArtefactError
from src.core.paths import MANIFEST, write_json
from src.core.result_files import JOURNAL
from src.core.settings import nested_plain
from src.core.training import FitResult
from src.data.candidates import draw_candidate_lists, load_candidates, save_candidates
from src.data.examples import openings
from src.data.id_map import IdMap
from src.data.teacher_outputs import load_teacher_outputs, save_teacher_outputs
from src.data.tensor_examples import TensorExamples
from src.distill.teachers import outputs_from_scores
from src.evaluation.example_histories import read_examples
from src.pipeline import cache
from src.pipeline.cache import STAGE, StageCache, StageRecord
from src.pipeline.evaluate_all import FinishedResult
from src.pipeline.known_models import note_fingerprint, noted_fingerprint
from src.pipeline.run_folder import previous_resumes
from src.pipeline.settings import ExperimentSettings
from src.pipeline.student_stages import fit_of, tried_for
from src.pipeline.tracking import LastPoints
from src.serving.beside import stand_beside
from src.serving.export import ExportStudentSettings, check_export, export_student
from src.serving.metrics_table import metrics_table
from src.serving.results import comparison_rows
from src.serving.students import open_student
from src.student.artefact import load_student, save_student
from src.student.base import ClosedForm, SequenceStudent
from src.student.models import build_closed_form, build_student, require_network, student_settings
from src.student.prior import Prior, fit_prior, load_prior, save_prior
from src.teacher import factory
from src.teacher.labelling.cache import LabelCache
from src.teacher.settings import ExportSettings, TeacherSettings
from src.tuning import processes
from src.tuning.html_report import tables
from src.tuning.html_report.sources import read_result
from src.tuning.journal import read_journal
from src.tuning.kept_models import keep_model, whole_model
from src.tuning.processes import end_survivors
from src.tuning.search_settings import SearchSettings
from src.tuning.shared_data import SharedData
from src.tuning.space_document import load_search_space
from src.tuning.store import Store, own_store
from tests.evaluation.test_example_histories import examples_file
from tests.fixtures import NUM_ITEMS, WINDOW, cycle_data, outputs_for
from tests.fuzz.mutations import STRUCTURED, damage
from tests.serving.finished import finished, student
from tests.teacher.test_label_cache import Counting

TOTAL, SEED = 2_000, 20261127
DATA = cycle_data()
#: made anew at every start of a search, and mapped into memory: a checksum would make each trial read it all
UNVERIFIED = {"trials' data"}

Mode = Literal["exact", "stated", "sound"]


@dataclass(frozen=True)
class Kind:
    """How a kind of artefact is made, which of its files are damaged, how it is read, and what must come back.

    ``stated`` reads the same with the standard library alone.
    """

    name: str
    make: Callable[[Path], object]
    files: str
    read: Callable[[Path], Any]
    mode: Mode
    stated: Callable[[Path], Any] = lambda folder: None


# -------------------------------------------------------------------------------------------------- a search's folder


def _settings() -> SearchSettings:
    return read_settings("tune_student", ["student.width=8", "seed=7"], SearchSettings)[0]


def _search_folder(folder: Path) -> None:
    command = {"command": "tune_student", "arguments": ["student.width=8", "seed=7"], "cwd": "/somewhere"}
    write_json(folder / "command.json", command)
    (folder / "settings.yaml").write_text(yaml.safe_dump(nested_plain(_settings())))
    lines = [{"time": "2026-11-27T10:00:00+0000", "changes": ["trials=4"]}] * 3
    (folder / "resumes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _begun(folder: Path) -> Any:
    begun = read_begun(folder, "tune_student")
    return begun.command, begun.arguments, begun.cwd


def _stated_command(folder: Path) -> Any:
    content = json.loads((folder / "command.json").read_text())
    return content["command"], content["arguments"], content["cwd"]


def _resumed(folder: Path) -> Any:
    return nested_plain(read_resumed(folder, "tune_student", "tune_student", SearchSettings, RESUMABLE, []).settings)


def _stated_settings(folder: Path) -> Any:
    content = yaml.safe_load((folder / "settings.yaml").read_text())
    wanted = TypeAdapter(SearchSettings).validate_python(content)
    return {**nested_plain(wanted), **_places(nested_plain(wanted), _resumed(folder))}


def _places(stated: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Sections with relative paths as the reading made them absolute: the rest must be as stated."""
    sections = {}
    for name, content in stated.items():
        if isinstance(content, dict):
            sections[name] = {
                key: found[name][key] if str(found[name][key]).endswith(str(value).removeprefix("./")) else value
                for key, value in content.items()
            }
        elif str(found[name]).endswith(str(content)):
            sections[name] = found[name]
    return sections


def _stated_lines(file: str, keys: tuple[str, ...]) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        found = []
        for line in (folder / file).read_text().split("\n"):
            if line.strip():
                try:
                    content = json.loads(line)
                except ValueError:
                    continue  # a torn last line
                found.append({key: content[key] for key in keys if key in content})
        return found

    return read


def _openings_folder(folder: Path) -> None:
    record = folder / "test_openings.jsonl"
    for number in range(3):
        DATA.test.open(f"reason {number}", record, "judged")


def _openings(folder: Path) -> Any:
    return openings(folder / "test_openings.jsonl")


def _stated_openings(folder: Path) -> Any:
    kept = _stated_lines("test_openings.jsonl", ("time", "reason", "test_split", "judged", "again"))(folder)
    return [{"test_split": "", "judged": "", "again": False, **line} for line in kept]


def _journal_folder(folder: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize")
    study.set_user_attr("metrics", ["ndcg_20"])
    for number in range(4):
        trial = study.ask({"distill.lam": optuna.distributions.FloatDistribution(0.0, 1.0)})
        trial.report(0.1 * number, 1)
        trial.set_user_attr("weights", f"{number}")
        study.tell(trial, 0.1 * number if number else None, TrialState.COMPLETE if number else TrialState.PRUNED)


def _journal(folder: Path) -> Any:
    storage = read_journal(folder / JOURNAL)
    found = []
    for study in storage.get_all_studies():
        trials = storage.get_all_trials(study._study_id)
        completed = [trial for trial in trials if trial.state == TrialState.COMPLETE]
        ranked = sorted(completed, key=lambda trial: (-trial.values[0], trial.number))
        found.append((study.study_name, [(t.number, t.params, t.values, t.intermediate_values) for t in ranked]))
    return found


def _processes_folder(folder: Path) -> None:
    (folder / "theirs" / "deep").mkdir(parents=True)
    children = [{"pid": 1, "started": 0.0}]
    told = {"scratch": str(folder / "theirs"), "mark": "0" * 32, "folder": "1:2", "children": children}
    write_json(folder / "processes.json", told)


def _survivors(folder: Path) -> Any:
    with patch.object(processes, "_identity", lambda folder: "1:2"):
        return end_survivors(folder), (folder / "theirs" / "deep").is_dir()


def _report_folder(folder: Path) -> None:
    _search_folder(folder)
    _openings_folder(folder)
    arm = {"arm": "student", "title": "student", "test": 0.1, "low": 0.0, "high": 0.2, "trials": 3, "seeds": [1]}
    line = {"name": "a", "against": "b", "difference": 0.1, "low": 0.0, "high": 0.2, "sentence": "s"}
    write_json(folder / "fair.json", {"metric": "ndcg_20", "arms": [arm], "comparisons": [line]})
    write_json(folder / "metrics" / "time.json", {"wall_time": 1.5, "search_time": 1.0})
    (folder / "comparison.csv").write_text("model,split,examples,trials,ndcg_20\na,test,10,1,0.5\n")
    segment = "length,1,10,a,0.1,0.0,-0.1,0.1,b,users,test\n"
    heading = "by,segment,examples,model,ndcg_20,gain,low,high,against,resampled,split\n"
    (folder / "segments.csv").write_text(heading + segment + segment.replace(",a,", ",b,"))
    examples_file(folder)
    sentences = {"baseline": {"sentence": "it helped.", "verdict": "helped"}}
    write_json(folder / "metrics" / "verdict.json", {"against": sentences})
    (folder / "best_params.yaml").write_text("# Replay:\n#   python -m src.exp.run_distill\nseed: 1\n")


def _report(folder: Path) -> Any:
    result = read_result(folder, {"kind": "tune_distill"})
    assert isinstance(result.fair, dict)
    assert all(isinstance(value, (int, float)) for value in result.times.values())
    if result.segments is not None and (result.segments["examples"] > 0).any():
        tables.segments(result.segments)
    return result.fair, dict(result.times), len(result.openings)


def _examples(folder: Path) -> Any:
    return asdict(read_examples(folder / "metrics" / "examples.json"))


def _stated_examples(folder: Path) -> Any:
    def only(content: dict[str, Any], *names: str) -> dict[str, Any]:
        return {name: content[name] for name in names}

    def items(listed: list[Any]) -> list[Any]:
        return [only(item, "raw_id", "title") for item in listed]

    content = json.loads((folder / "metrics" / "examples.json").read_text())
    told = [
        {
            **only(example, "example_id", "drawn", "earlier"),
            "history": items(example["history"]),
            "target": items([example["target"]])[0],
            "lists": {role: items(listed) for role, listed in example["lists"].items()},
        }
        for example in content["examples"]
    ]
    facts = ("models", "listed", "pool", "only_winner", "only_baseline", "seen_left_out", "no_teacher")
    return {**only(content, *facts), "examples": told}


def _result_folder(folder: Path) -> None:
    _search_folder(folder)
    manifest = {"kind": "tune_student", "fingerprints": DATA.fingerprints(), "search": {"trials": {"COMPLETE": 3}}}
    write_json(folder / MANIFEST, manifest)


def _result(folder: Path) -> Any:
    result = FinishedResult.read(folder)
    assert isinstance(result.experiment, ExperimentSettings)
    assert isinstance(result.trials(), int)
    return nested_plain(result.experiment), result.manifest["fingerprints"]


def _python_folder(folder: Path) -> None:
    """What a result says to Python, to a model card, and to the page of `serve`."""
    result = finished(folder / "result", student("popularity"))
    (result / "best_params.yaml").write_text("# Replay:\nstudent: gru4rec\nstudent.width: 8\n")
    arm = {"arm": "student", "test": 0.1}
    line = {"name": "a", "against": "b", "difference": 0.1, "low": 0.0, "high": 0.2, "sentence": "s"}
    write_json(result / "fair.json", {"metric": "ndcg_20", "arms": [arm], "comparisons": [line]})
    shutil.copytree(result / "best_student", folder / "cache" / "student" / "abc")
    manifest = json.loads((result / MANIFEST).read_text())
    write_json(result / MANIFEST, {**manifest, "fingerprints": {"student_baseline": "abc"}})
    # relative: where the copies lie that are read
    (result / "settings.yaml").write_text(yaml.safe_dump({"runtime": {"cache": "copy/cache"}, "dataset": {}}))


def _python(folder: Path) -> Any:
    result = Result.load(folder / "result")
    assert all(isinstance(sentence, str) for sentence in result.verdicts)
    rows = comparison_rows(folder / "result")
    return result.comparison.to_dict(), result.best_params, result.verdicts, metrics_table(rows) if rows else ""


def _beside(folder: Path) -> Any:
    return [served.name for served in stand_beside(folder / "result")]


def _export_folder(folder: Path) -> None:
    export_student(settings := ExportStudentSettings(result=_result_of(folder)), check_export(settings), folder / "own")


def _result_of(folder: Path) -> Path:
    return finished(folder / "result", student("popularity"))


def _exported(folder: Path) -> Any:
    served = open_student(folder / "own", threads=1)
    best = [(one.item, one.title, one.score) for one in served.recommend([1, 2], 3, exclude_seen=True)]
    return best, served.name, served.fingerprints


def _points_folder(folder: Path) -> None:
    LastPoints(folder / "points.json").ahead("search/trial_0000", 3, {"loss": 0.5})


def _points(folder: Path) -> Any:
    return LastPoints(folder / "points.json").ahead("search/trial_0000", 4, {"loss": 0.25})


def _trial_folder(folder: Path) -> None:
    trained: Any = SimpleNamespace(save=_student_folder)
    keep_model(trained, {"distill.lam": 0.5}, {"weights": "w"}, folder / "new", Store(str(folder)), "0/model")
    shutil.rmtree(folder / "new")


def _trial(folder: Path) -> Any:
    if (model := whole_model(Store(str(folder)), "0/model", folder / "place")) is None:
        raise ArtefactError.one("trial", str(folder), "is not whole, which is told")
    return _student(model)


def _storage_folder(folder: Path) -> None:
    (folder / "result").mkdir()
    with own_store(folder / "result", "trials", str(folder / "shared")):
        pass


def _storage(folder: Path) -> Any:
    write_json(folder / "result" / "storage.json", json.loads((folder / "kept.json").read_text()))
    with own_store(folder / "result", "trials", str(folder / "shared")) as store:
        return Path(store.root).name


def _kept_storage_folder(folder: Path) -> None:
    _storage_folder(folder)
    shutil.copyfile(folder / "result" / "storage.json", folder / "kept.json")


# ------------------------------------------------------------------------------------------------------ stages


def _stage_folder(folder: Path) -> None:
    record = StageCache(folder).stage("kind", {"x": 1}, lambda target: write_json(target / MANIFEST, {"kind": "kind"}))
    stage = {**json.loads((record.folder / STAGE).read_text()), "seconds": 0.25}  # the same whenever the test runs
    write_json(record.folder / STAGE, {**stage, "checksum": cache._checksum(stage)})


def _stage(folder: Path) -> Any:
    record = StageCache(folder).stage("kind", {"x": 1}, lambda target: write_json(target / MANIFEST, {"kind": "again"}))
    return record.seconds if record.reused else "built again"


def _known_folder(folder: Path) -> None:
    note_fingerprint(folder, "/gone/model", "0123456789abcdef")


def _known(folder: Path) -> Any:
    return noted_fingerprint(folder, "/gone/model")


def _facts_folder(folder: Path) -> None:
    fit = FitResult(2, {"ndcg_20": 0.5}, [{"ndcg_20": 0.25, "train_loss": 3.0}, {"ndcg_20": 0.5}], 2, 8, 64, 1.5)
    write_json(folder / MANIFEST, {"fit": asdict(fit), "tried": [{"l2": 10.0, "ndcg_20": 0.5}]})


def _facts(folder: Path) -> Any:
    record = StageRecord("student", "key", folder, 1.0, reused=True)
    fit = fit_of(record)
    assert all(isinstance(value, float) for line in (fit.best_metrics, *fit.history) for value in line.values())
    return asdict(fit), tried_for(record)


def _fitted() -> Prior:
    train, validation = TensorExamples.of(DATA.train, "cpu"), TensorExamples.of(DATA.validation, "cpu")
    return fit_prior(student_settings("linear"), train, validation, NUM_ITEMS, folds=2, seed=0)


def _student_folder(folder: Path) -> None:
    """A network with a prior."""
    torch.manual_seed(0)
    settings = require_network(student_settings("transformer", width=4, prior="linear"))
    student, prior = build_student(settings, NUM_ITEMS, WINDOW), _fitted()
    student.add_prior(prior.model, prior.scale)
    save_student(folder, student, settings, DATA.id_map, DATA.fingerprints(), {})


def _student(folder: Path) -> Any:
    student, settings = load_student(folder, DATA)
    models = [student]
    if isinstance(student, SequenceStudent) and student.prior is not None:
        models.append(student.prior)
    assert student(torch.tensor([[0, 1]]), torch.tensor([2])).shape == (1, NUM_ITEMS)
    weights = [{name: value.tolist() for name, value in model.state_dict().items()} for model in models]
    return weights, settings.architecture


def _closed_form_folder(folder: Path) -> None:
    settings = student_settings("linear")
    model = build_closed_form(settings, NUM_ITEMS, WINDOW)
    model.fit(TensorExamples.of(DATA.train, "cpu"), torch.arange(len(DATA.train)))
    save_student(folder, model, settings, DATA.id_map, DATA.fingerprints(), {})


def _prior_folder(folder: Path) -> None:
    save_prior(folder, _fitted())


def _prior(folder: Path) -> Any:
    found = load_prior(folder, "cpu")
    assert isinstance(found.model, ClosedForm)
    assert found.of(found.train, torch.arange(3)).shape == (3, NUM_ITEMS)
    weights = {name: value.tolist() for name, value in found.model.state_dict().items()}
    return weights, found.train.tolist(), found.validation.tolist()


def _id_map(folder: Path) -> Any:
    found = IdMap.load(folder / "id_map.json")
    return list(found.raw_ids), list(found.titles)


def _stated_id_map(folder: Path) -> Any:
    rows = json.loads((folder / "id_map.json").read_text())
    return [row["raw_id"] for row in rows], [row["title"] for row in rows]


def _outputs_folder(folder: Path) -> None:
    outputs = outputs_for(DATA.train, np.arange(6))
    manifest = {"fingerprints": {**DATA.fingerprints(), "model": "m", "prompt": "p"}}
    save_teacher_outputs(folder, type(outputs)(**{**outputs.__dict__, "manifest": manifest}), DATA.id_map)


def _outputs(folder: Path) -> Any:
    found = load_teacher_outputs(folder, DATA.fingerprints(), NUM_ITEMS)
    return found.example_id.tolist(), found.candidates.tolist(), found.distances.tolist(), found.item_embedding.tolist()


def _student_outputs_folder(folder: Path) -> None:
    """What a model in closed form says: no embeddings."""
    prior = _fitted()
    manifest = {"fingerprints": {**DATA.fingerprints(), "model": "linear", "prompt": "none"}}
    outputs = outputs_from_scores(
        lambda rows: prior.of(prior.train, rows), DATA.train.example_id, NUM_ITEMS, 3, manifest
    )
    save_teacher_outputs(folder, outputs, DATA.id_map)


def _candidates(folder: Path) -> Any:
    found = load_candidates(folder, DATA.fingerprints())
    return found.example_id.tolist(), found.items.tolist()


def _candidates_folder(folder: Path) -> None:
    save_candidates(folder, draw_candidate_lists(DATA.validation, NUM_ITEMS, 4, 1), DATA.fingerprints())


def _labels(folder: Path) -> Any:
    found = LabelCache(folder, shard_rows=4).outputs(DATA, np.arange(8), ExportSettings(budget=8.0), Counting)
    return found.example_id.tolist(), found.distances.tolist(), found.item_embedding.tolist()


def _shared_folder(folder: Path) -> None:
    SharedData.of(DATA, {"llm": outputs_for(DATA.train, np.arange(6))}, _fitted()).save(Store(str(folder)))


def _shared(folder: Path) -> Any:
    found = SharedData.load(folder / "data", torch.device("cpu"))
    students, prior = found.students, found.students.prior
    assert prior is not None
    return students.train.history.tolist(), students.propensity.tolist(), prior.train.tolist(), found.id_map.raw_ids


def _state_folder(folder: Path) -> None:
    (folder / "state.pt").write_bytes(pack({"epoch": 3, "weights": torch.arange(4.0)}, "this"))


def _state(folder: Path) -> Any:
    found = unpack((folder / "state.pt").read_bytes(), "this", "state.pt")
    return found["epoch"], found["weights"].tolist()


def _teacher_folder(folder: Path) -> None:
    fingerprints = {**DATA.fingerprints(), "llm": "l", "prompt": "p"}
    settings = json.loads(json.dumps(asdict(TeacherSettings()), default=str))
    manifest = {"kind": "teacher", "schema_version": 1, "settings": settings, "llm": "/gone", "summary": {}}
    write_json(folder / MANIFEST, {**manifest, "fingerprints": fingerprints})


def _teacher(folder: Path) -> Any:
    return factory._open(folder, TeacherSettings(), DATA, torch.device("cpu"))


# ------------------------------------------------------------------------------------------------------ documents


def _params_folder(folder: Path) -> None:
    content = {"student": "gru4rec", "student.width": 8, "evaluation.ks": [5, 10], "seed": 3, "dataset.name": "x"}
    (folder / "best_params.yaml").write_text(yaml.safe_dump(content))


def _params(folder: Path) -> Any:
    found = expand_params([f"params={folder / 'best_params.yaml'}"])
    assert not any(argument.startswith(("hydra", "+", "-", "~")) for argument in found)
    return found


def _space_folder(folder: Path) -> None:
    lines = {"distill.lam": {"type": "float", "low": 0.0, "high": 1.0}}
    lines["active.policy"] = {"type": "categorical", "choices": ["all", "kl_divergence"]}
    lines["active.kl_threshold"] = {
        "type": "float",
        "low": 0.1,
        "high": 1.0,
        "when": {"active.policy": "kl_divergence"},
    }
    content = {"stage": "distill", "metric": "ndcg_20", "direction": "maximize", "parameters": lines}
    (folder / "space.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


SETTINGS = nested_plain(_settings())


def _space(folder: Path) -> Any:
    return str(load_search_space(folder / "space.yaml", SETTINGS, ["ndcg_20", "recall_20"]))


KINDS = [
    Kind("command", _search_folder, "command.json", _begun, "stated", _stated_command),
    Kind("settings", _search_folder, "settings.yaml", _resumed, "stated", _stated_settings),
    Kind("resumes", _search_folder, "resumes.jsonl", previous_resumes, "stated",
         _stated_lines("resumes.jsonl", ("time", "changes"))),
    Kind("openings of the test split", _openings_folder, "*.jsonl", _openings, "stated", _stated_openings),
    Kind("study", _journal_folder, JOURNAL, _journal, "sound"),
    Kind("note of processes", _processes_folder, "processes.json", _survivors, "exact"),
    Kind("report's sources", _report_folder, "**/*.*", _report, "sound"),
    Kind("result in Python", _python_folder, "result/*.*", _python, "sound"),
    Kind("who stands beside", _python_folder, "result/[ms]*.*", _beside, "sound"),
    Kind("export", _export_folder, "own/*.*", _exported, "exact"),
    Kind("last points", _points_folder, "points.json", _points, "sound"),
    Kind("trial's model", _trial_folder, "0/model/**/*.*", _trial, "exact"),
    Kind("examples", examples_file, "metrics/examples.json", _examples, "stated", _stated_examples),
    Kind("finished result", _result_folder, "[ms]*.*", _result, "sound"),
    Kind("storage's owner", _kept_storage_folder, "shared/result/.search.json", _storage, "exact"),
    Kind("stage", _stage_folder, "kind/*/*.json", _stage, "exact"),
    Kind("a model that was known", _known_folder, "**/*.json", _known, "exact"),
    Kind("what a stage measured", _facts_folder, MANIFEST, _facts, "sound"),
    Kind("student's manifests", _student_folder, f"**/{MANIFEST}", _student, "sound"),
    Kind("student's items", _student_folder, "id_map.json", _student, "exact"),
    Kind("student's weights", _student_folder, "**/*.safetensors", _student, "exact"),
    Kind("closed form's manifest", _closed_form_folder, MANIFEST, _student, "sound"),
    Kind("closed form's weights", _closed_form_folder, "*.safetensors", _student, "exact"),
    Kind("prior's manifest", _prior_folder, MANIFEST, _prior, "sound"),
    Kind("prior's numbers", _prior_folder, "*.safetensors", _prior, "exact"),
    Kind("labels of a student", _student_outputs_folder, "*.*", _outputs, "exact"),
    Kind("id map", _student_folder, "id_map.json", _id_map, "stated", _stated_id_map),
    Kind("teacher outputs' manifest", _outputs_folder, MANIFEST, _outputs, "exact"),
    Kind("teacher outputs' arrays", _outputs_folder, "*.npy", _outputs, "exact"),
    Kind("candidate lists", _candidates_folder, "*.*", _candidates, "exact"),
    Kind("labels", _labels, "*.safetensors", _labels, "exact"),
    Kind("trials' data", _shared_folder, "data/*.safetensors", _shared, "exact"),
    Kind("trials' facts", _shared_folder, "data/**/*.json", _shared, "sound"),
    Kind("trials' prior", _shared_folder, "data/prior/*.safetensors", _shared, "exact"),
    Kind("training's state", _state_folder, "state.pt", _state, "exact"),
    Kind("teacher's manifest", _teacher_folder, MANIFEST, _teacher, "exact"),
    Kind("params file", _params_folder, "*.yaml", _params, "sound"),
    Kind("search space", _space_folder, "*.yaml", _space, "sound"),
]  # fmt: skip
EACH = -(-TOTAL // len(KINDS))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damage_is_told_or_harmless(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    stream = random.Random(f"{SEED} {kind.name}")
    whole = tmp_path / "whole"
    whole.mkdir()
    kind.make(whole)
    _steady(whole)
    before, outcomes = _outcome(kind, shutil.copytree(whole, tmp_path / "copy")), Counter[str]()
    # a whole teacher is too dear for a fuzz test: reading its manifest ends at the language model, which is gone
    assert isinstance(before, AnyoError) == (kind.name == "teacher's manifest"), before
    for number in range(EACH):
        shutil.rmtree(tmp_path / "copy")
        copy = shutil.copytree(whole, tmp_path / "copy")
        file = stream.choice(sorted(path for path in copy.glob(kind.files) if path.is_file()))
        damage(file, stream)
        found = _outcome(kind, copy)
        if isinstance(found, AnyoError) or found == "built again":
            outcomes["told"] += 1
        elif found == before:
            outcomes["equal"] += 1
        elif kind.mode == "sound":
            outcomes["sound"] += 1
        elif kind.mode == "stated" and found == kind.stated(copy):
            outcomes["as stated"] += 1
        elif kind.name in UNVERIFIED:
            outcomes["not noticed"] += 1
        else:
            raise AssertionError(f"damage {number} to {file.name} came back as {found!r}: {file.read_bytes()!r}")
    record_property("outcomes", dict(outcomes))
    assert outcomes.total() == EACH


def _steady(folder: Path) -> None:
    """Without times, durations and processes: the same damage to the same files whenever the test runs."""
    for file in folder.rglob("*"):
        if file.suffix in STRUCTURED:
            text = re.sub(r"\d{4}-\d\d-\d\d([T ])[\d:.]+", r"2026-01-01\g<1>00:00:00", file.read_text())
            text = re.sub(r'"seconds": [\d.e-]+', '"seconds": 0.25', text)
            file.write_text(re.sub(r'"worker_id":"[^"]*"', '"worker_id":"w"', text))


def _outcome(kind: Kind, folder: Path) -> Any:
    """What is read, or the error of the family that ends it; any other error ends the test."""
    try:
        return kind.read(folder)
    except AnyoError as error:
        return error


def test_what_carries_no_checksum_is_a_kind() -> None:
    assert {kind.name for kind in KINDS} >= UNVERIFIED
