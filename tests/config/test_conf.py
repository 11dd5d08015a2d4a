"""Every file of `conf/` becomes settings; no default stands in two places that disagree; every field is read."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from src.core.errors import ConfigError
from src.core.paths import REPOSITORY
from src.core.training import LoopSettings
from src.data.settings import DatasetSettings
from src.distill.settings import ActiveSettings, DistillSettings
from src.exp import (
    export,
    recommend,
    run_distill,
    run_eval_all,
    run_student_baseline,
    run_teacher,
    serve,
    tune_distill,
    tune_student,
    tune_teacher,
)
from src.exp.door import CONF, compose_plain, groups, read_settings
from src.exp.run_teacher import TeachSettings
from src.exp.searching import SearchSettings
from src.exp.tune_distill import TuneSettings
from src.pipeline.evaluate_all import EvaluateSettings
from src.pipeline.settings import ExperimentSettings, RuntimeSettings
from src.serving.export import ExportSettings
from src.serving.histories import HistoryColumns
from src.serving.recommend import RecommendSettings
from src.serving.serve import ServeSettings
from src.student.settings import EvaluationSettings, StudentSettings
from src.teacher import settings as teacher_settings
from src.teacher.settings import TeacherSettings
from src.tuning.settings import RaySettings, TuningSettings

GROUPS = {
    "dataset": DatasetSettings,
    "student": StudentSettings,
    "teacher": TeacherSettings,
    "distill": DistillSettings,
    "active": ActiveSettings,
    "evaluation": EvaluationSettings,
    "runtime": RuntimeSettings,
    "tuning": TuningSettings,
    "ray": RaySettings,
}
MODULES = (
    run_student_baseline, run_teacher, run_distill, run_eval_all, tune_student, tune_teacher, tune_distill, export,
    recommend, serve,
)  # fmt: skip
ENTRIES = [module.ENTRY for module in MODULES]
ALL_SETTINGS = [
    *GROUPS.values(),
    LoopSettings,
    ExperimentSettings,
    TeachSettings,
    SearchSettings,
    TuneSettings,
    EvaluateSettings,
    ExportSettings,
    RecommendSettings,
    HistoryColumns,
    ServeSettings,
    *(getattr(teacher_settings, name) for name in ("LoraSettings", "GateSettings", "PromptSettings", "HeadSettings")),
    teacher_settings.TitleSettings,
    *(getattr(teacher_settings, name) for name in ("TeacherTrainSettings", "ExportSettings", "TinySettings")),
]


def plain(settings: Any) -> dict[str, Any]:
    """Settings as YAML shows them."""
    nested: dict[str, Any] = json.loads(json.dumps(asdict(settings), default=str))
    return nested


def base_content(group: str) -> dict[str, Any]:
    """What a group's base file says; a group without one has a single option."""
    if (CONF / group / "base.yaml").is_file():
        content: dict[str, Any] = yaml.safe_load((CONF / group / "base.yaml").read_text(encoding="utf-8"))
        return content
    return compose_plain("tune", [])[0][group]


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``base`` with what ``own`` says, key by key at every depth."""
    nested = {key: merged(base[key], value) for key, value in own.items() if isinstance(value, dict)}
    return {**base, **own, **nested}


def options() -> list[tuple[str, str]]:
    """Every option of every group."""
    found = groups("tune")
    return [(group, option) for group in found for option in found[group]]


def test_every_group_folder_is_known_here() -> None:
    assert set(GROUPS) | {"hydra", "use"} == {folder.name for folder in CONF.iterdir() if folder.is_dir()}


def test_option_files_are_all_seen() -> None:
    files = [file for group in GROUPS for file in (CONF / group).glob("*.yaml") if file.stem != "base"]
    assert len(options()) == len(files) >= 16


@pytest.mark.parametrize(("group", "option"), options())
def test_every_option_composes_into_settings(group: str, option: str) -> None:
    settings, _ = read_settings("tune", [f"{group}={option}"], TuneSettings)
    assert type(getattr(settings, group)) is GROUPS[group]
    if group in ("student", "active", "distill", "dataset"):
        name = {"student": "architecture", "active": "policy", "dataset": "adapter"}.get(group)
        assert name is None or getattr(getattr(settings, group), name) == option


@pytest.mark.parametrize("group", GROUPS)
def test_defaults_agree_in_both_places(group: str) -> None:
    # equality of nested mappings: the same keys, the same values, nothing more in either
    assert base_content(group) == plain(GROUPS[group]())


@pytest.mark.parametrize(("group", "option"), options())
def test_an_option_changes_only_what_its_file_says(group: str, option: str) -> None:
    content = compose_plain("tune", [f"{group}={option}"])[0][group]
    for key, (value, expected) in pairs(content, said_by(group, option)).items():
        if "${" not in str(expected):
            assert value == expected, key


def said_by(group: str, option: str) -> dict[str, Any]:
    """What an option's file says, over what the option that it begins with says."""
    own = yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8"))
    (before,) = [name for name in own.pop("defaults", ["base"]) if name != "_self_"]
    return merged(base_content(group) if before == "base" else said_by(group, before), own)


def pairs(found: dict[str, Any], expected: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Leaves side by side, by their dotted names."""
    leaves: dict[str, tuple[Any, Any]] = {}
    assert found.keys() == expected.keys(), prefix
    for key, value in found.items():
        if isinstance(value, dict) and isinstance(expected[key], dict):
            leaves |= pairs(value, expected[key], f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = (value, expected[key])
    return leaves


def test_presets_differ_only_in_the_two_switches() -> None:
    composed = {o: compose_plain("config", [f"distill={o}"])[0]["distill"] for o in ("as_released", "corrected")}
    different = {key for key in composed["corrected"] if composed["corrected"][key] != composed["as_released"][key]}
    assert different == {"dro_weighting", "ranking_negative"}
    assert (composed["as_released"]["dro_weighting"], composed["as_released"]["ranking_negative"]) == (
        "product",
        "sigmoid_of_one_minus",
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.command)
def test_each_command_has_a_key_for_every_field_and_a_field_for_every_key(entry: Any) -> None:
    content = compose_plain(entry.config_name, [])[0]
    assert set(content) == {field.name for field in fields(entry.schema)}
    if "seed" in content:
        assert content["seed"] == ExperimentSettings.seed


def test_a_key_without_a_field_is_refused() -> None:
    from src.exp.door import to_settings

    content = compose_plain("config", [])[0]
    content["student"]["colour"] = "red"
    with pytest.raises(ConfigError, match="student.colour"):
        to_settings(content, ExperimentSettings, ".")


# ---------------------------------------------------------------------------------------------- every field is read


class _Reads(ast.NodeVisitor):
    """Attribute names that are read, each with the class in which the reading stands (None outside classes)."""

    def __init__(self) -> None:
        self.found: set[tuple[str, str | None]] = set()
        self._inside: str | None = None

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before, self._inside = self._inside, node.name
        self.generic_visit(node)
        self._inside = before

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self.found.add((node.attr, self._inside))
        self.generic_visit(node)


def attribute_reads(folder: Path) -> set[tuple[str, str | None]]:
    """Every attribute read in the Python files below a folder."""
    reads = _Reads()
    for file in folder.rglob("*.py"):
        reads.visit(ast.parse(file.read_text(encoding="utf-8")))
    return reads.found


READS = attribute_reads(REPOSITORY / "src")


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda settings: settings.__name__)
def test_every_field_is_read_outside_its_own_class(settings: type) -> None:
    own = {parent.__name__ for parent in settings.__mro__}
    outside = {name for name, inside in READS if inside not in own}
    assert {field.name for field in fields(settings)} - outside == set()


def test_the_scan_sees_an_unread_field(tmp_path: Path) -> None:
    code = "class A:\n    x = 1\n    def f(self):\n        return self.x\n\ndef g(a):\n    a.z = 1\n    return a.y\n"
    (tmp_path / "a.py").write_text(code, encoding="utf-8")
    assert attribute_reads(tmp_path) == {("x", "A"), ("y", None)}


def test_no_settings_class_is_forgotten() -> None:
    found: set[type] = set()

    def collect(settings: type) -> None:
        found.add(settings)
        for hint in get_type_hints(settings, include_extras=False).values():
            for part in (hint, *get_args(hint)):
                if isinstance(part, type) and is_dataclass(part):
                    collect(part)

    for entry in ENTRIES:
        collect(entry.schema)
    assert found == set(ALL_SETTINGS)


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda settings: settings.__name__)
def test_every_leaf_field_has_a_note(settings: type) -> None:
    from src.exp.help import _note

    hints = get_type_hints(settings, include_extras=True)
    for field in fields(settings):
        bare = get_args(hints[field.name])[0] if hasattr(hints[field.name], "__metadata__") else hints[field.name]
        if not (isinstance(bare, type) and is_dataclass(bare)):
            assert len(_note(hints[field.name])) > 8, field.name
