"""Every file of `conf/` becomes settings; a default stands once, in its dataclass; every field is read."""

from __future__ import annotations

import ast
import copy
import re
import sys
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_type_hints

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from pydantic import Field
from pydantic.dataclasses import dataclass

from src.cli.help import rows, show_keys
from src.config import composition, descriptions
from src.config.base_configs import SCHEMAS, description, loaded, prepare, register
from src.config.composition import CONF, compose_plain, groups
from src.config.descriptions import VARIANTS, describe, describe_command, note, settings_kinds
from src.config.reading import read_settings, to_settings
from src.core.errors import ConfigError
from src.core.paths import REPOSITORY
from src.core.settings import STRICT, plain_value
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
from src.pipeline import settings as settings_module
from src.pipeline.settings import ExperimentSettings, RuntimeSettings
from src.tuning.search_settings import TuneSettings
from tests.config.field_reads import Program

MODULES = (
    run_student_baseline, run_teacher, run_distill, run_eval_all, tune_student, tune_teacher, tune_distill, export,
    recommend, serve,
)  # fmt: skip
ENTRIES = [module.ENTRY for module in MODULES]


def kinds_of(settings: type) -> dict[str, dict[str, type]]:
    """What each field of a settings class can hold, by the names of the configs that are generated from it."""
    hints = get_type_hints(settings)
    return {field.name: settings_kinds(hints[field.name])[1] for field in fields(settings)}


#: each group's settings by the name of the config that is generated from them; `base` where there is one kind
GROUPS = {name: kinds for name, kinds in kinds_of(TuneSettings).items() if kinds}


def every_settings_class() -> list[type]:
    """The settings of all commands, with those inside them, in a stable order."""
    found: dict[type, None] = {}

    def collect(settings: type) -> None:
        found.setdefault(settings)
        for kinds in kinds_of(settings).values():
            for kind in kinds.values():
                collect(kind)

    for entry in ENTRIES:
        for parent in reversed(loaded(entry.schema).__mro__):
            if is_dataclass(parent):
                collect(parent)
    return list(found)


ALL_SETTINGS = every_settings_class()


def base_content(group: str, name: str) -> dict[str, Any]:
    """The config that is generated from a group's settings."""
    content: dict[str, Any] = plain_value(GROUPS[group][name]())
    return content


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``base`` with what ``own`` says, key by key at every depth."""
    nested = {key: merged(base[key], value) for key, value in own.items() if isinstance(value, dict)}
    return {**base, **own, **nested}


def options() -> list[tuple[str, str]]:
    """Every option of every group."""
    found = groups("tune")
    return [(group, option) for group in found for option in found[group]]


@cache
def composed(group: str, option: str) -> dict[str, Any]:
    """The config of a search with this option; what is composed once is looked at twice."""
    return compose_plain("tune", [f"{group}={option}"])[0]


def test_every_group_folder_is_known_here() -> None:
    assert set(GROUPS) | {"hydra", "use"} == {folder.name for folder in CONF.iterdir() if folder.is_dir()}


def test_option_files_are_all_seen() -> None:
    files = [file for group in GROUPS for file in (CONF / group).glob("*.yaml")]
    assert len(options()) == len(files) >= 16


@pytest.mark.parametrize(("group", "option"), options())
def test_every_option_composes_into_settings(group: str, option: str) -> None:
    settings = to_settings(composed(group, option), TuneSettings, ".")
    assert type(getattr(settings, group)) in GROUPS[group].values()
    if group == "dataset":
        # an option is an adapter, or a preset of one
        assert settings.dataset.adapter == option or settings.dataset.adapter in (
            "movielens",
            "table",
            "src.tuning.ray_log:ADAPTER",
        )
    if group in ("student", "active", "distill"):
        name = {"student": "architecture", "active": "policy"}.get(group)
        assert name is None or option == "own" or getattr(getattr(settings, group), name) == option


def test_no_file_stands_where_a_config_is_generated() -> None:
    generated = {f"{group}/{name}" for group, kinds in GROUPS.items() for name in kinds}
    generated |= {f"_{name}" for config_name in SCHEMAS for name in description(config_name)["own"]}
    assert generated <= {path.removesuffix(".yaml") for path in stored()}
    assert [name for name in generated if (CONF / f"{name}.yaml").exists()] == []


def stored() -> set[str]:
    """Every config that is generated, by its path in Hydra's store."""
    store, found = ConfigStore.instance(), set()
    for config_name in SCHEMAS:
        prepare(config_name)
        found |= {name for name in store.list("") if name.startswith("_") and name.endswith(".yaml")}
        found |= {f"{group}/{name}" for group in GROUPS if group in store.repo for name in store.list(group)}
    return found


def test_a_command_sees_no_group_of_another() -> None:
    prepare("tune")
    prepare("use/recommend")
    assert compose_plain("use/recommend", ["student=/some/where"])[0]["student"] == "/some/where"
    prepare("config")
    assert compose_plain("config", ["student=gru4rec"])[0]["student"]["architecture"] == "gru4rec"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.command)
def test_what_no_file_says_is_the_default_of_the_dataclass(entry: Any) -> None:
    said = {"tune_teacher": {"trials": 8}, "run_eval_all": {"results": []}}.get(entry.command, {})
    content = compose_plain(entry.config_name, [])[0]
    for field in fields(loaded(entry.schema)):
        if field.name not in GROUPS:
            assert content[field.name] == said.get(field.name, plain_value(field.default)), field.name


@pytest.mark.parametrize(("group", "option"), options())
def test_an_option_changes_only_what_its_file_says(group: str, option: str) -> None:
    content = composed(group, option)[group]
    for key, (value, expected) in pairs(content, said_by(group, option)).items():
        if "${" not in str(expected):
            assert value == expected, key


def said_by(group: str, option: str) -> dict[str, Any]:
    """What an option's file says, over what the option that it begins with says."""
    own = yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8"))
    (before,) = [name for name in own.pop("defaults") if name != "_self_"]
    return merged(base_content(group, before) if before in GROUPS[group] else said_by(group, before), own)


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
    assert set(content) == {field.name for field in fields(loaded(entry.schema))}
    if "seed" in content:
        assert content["seed"] == ExperimentSettings.seed


def test_a_key_without_a_field_is_refused() -> None:
    content = compose_plain("config", [])[0]
    content["student"]["colour"] = "red"
    with pytest.raises(ConfigError, match="student.colour"):
        to_settings(content, ExperimentSettings, ".")


# ---------------------------------------------------------------------------------------------- every field is read


SOURCES = [file.read_text(encoding="utf-8") for file in sorted((REPOSITORY / "src").rglob("*.py"))]

#: what each settings class inherits from, also where it is put together without a class statement
PARENTS = {cls.__name__: [p.__name__ for p in cls.__mro__[1:] if is_dataclass(p)] for cls in ALL_SETTINGS}

#: fields that only a plug-in's own code reads
READ_BY_OTHERS = {"OwnStudentSettings": {"options"}}

#: settings with a field of every name that settings have, none of which is read of them
NAMES = sorted({field.name for settings in ALL_SETTINGS for field in fields(settings)})
PLANTED = f"""
@dataclass
class PlantedSettings:
    {"; ".join(f"{name}: int = 0" for name in NAMES)}

def planted(settings: PlantedSettings) -> PlantedSettings:
    return settings
"""


@pytest.fixture(scope="module")
def program() -> Program:
    """This program, with a class of settings that nothing reads."""
    return Program([*SOURCES, PLANTED], PARENTS)


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda settings: settings.__name__)
def test_every_field_is_read_outside_its_own_class(program: Program, settings: type) -> None:
    assert {field.name for field in fields(settings)} == program.fields_of(settings.__name__)
    assert program.unread(settings.__name__) == READ_BY_OTHERS.get(settings.__name__, set())


def test_a_field_is_missed_though_other_settings_have_one_of_its_name(program: Program) -> None:
    assert len(NAMES) > 100
    assert program.unread("PlantedSettings") == set(NAMES)


READING = """
@dataclass
class Inner:
    depth: int
    width: int

@dataclass
class Other:
    width: int

@dataclass
class Settings:
    plain: int
    chained: Inner
    local: int
    unpacked: int
    looped: int
    listed: int
    kept: int
    named: int
    called: int
    chosen: int
    in_lambda: int
    in_property: int
    copied: int
    written: int
    checked: int
    of_another: int
    of_anything: int
    in_its_own_class: int

    def __post_init__(self): self.in_its_own_class
    @property
    def twice(self) -> int: return self.in_its_own_class

@dataclass
class Whole:
    settings: Settings
    other: Other
    def __post_init__(self): self.settings.checked
    @property
    def part(self) -> Settings: return self.settings

class Keeper:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
    def use(self): return self._settings.kept
    def give(self) -> "Settings | None": return self._settings

TABLE: dict[str, Callable[[Settings], int]] = {"a": lambda settings: settings.in_lambda}

def use(settings: Settings, whole: Whole, many: Sequence[Settings], anything: Any, keeper: Keeper, some: bool) -> None:
    settings.plain, whole.settings.chained.depth, anything.of_anything, whole.other.of_another
    again = settings
    again.local
    first, second = settings, whole.other
    first.unpacked, second.width
    for one in many:
        one.looped
    [each.listed for each in many]
    getattr(settings, "named")
    keeper.give().called
    (settings if some else None).chosen
    whole.part.in_property
    replace(settings, plain=3).copied
    settings.written = 3
"""


def test_what_counts_as_a_reading() -> None:
    found = Program([READING])
    assert found.unread("Settings") == {"written", "checked", "of_another", "of_anything", "in_its_own_class"}
    assert found.unread("Inner") == {"width"}
    assert found.unread("Other") == set()
    assert found.unread("Whole") == set()


def test_a_class_that_is_put_together_reads_for_its_parts() -> None:
    part = "@dataclass\nclass Part:\n    a: int\n    b: int\n"
    whole = "class Whole: ...\ndef use(settings: Whole): return settings.a\n"
    assert Program([part, whole]).unread("Part") == {"a", "b"}
    assert Program([part, whole], {"Whole": ["Part"]}).unread("Part") == {"b"}
    assert Program([part, whole], {"Whole": ["Part"]}).unread("Whole") == {"b"}


def test_every_settings_class_has_a_name_of_its_own() -> None:
    defined = [
        node.name for source in SOURCES for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)
    ]
    assert [name for name in {cls.__name__ for cls in ALL_SETTINGS} if defined.count(name) != 1] == []


@pytest.mark.parametrize("settings", ALL_SETTINGS, ids=lambda settings: settings.__name__)
def test_every_leaf_field_has_a_note(settings: type) -> None:
    hints = get_type_hints(settings, include_extras=True)
    for field in fields(settings):
        bare = get_args(hints[field.name])[0] if hasattr(hints[field.name], "__metadata__") else hints[field.name]
        if not (isinstance(bare, type) and is_dataclass(bare)):
            assert len(note(hints[field.name])) > 8, field.name


# --------------------------------------------------------------------------- a field, and a kind of settings, is added


@dataclass(frozen=True, config=STRICT)
class Kind:
    """What all kinds have."""

    width: Annotated[int, Field(ge=1, description="how wide")] = 4


@dataclass(frozen=True, config=STRICT)
class Round(Kind):
    """Something round."""

    architecture: Literal["round"] = "round"
    radius: Annotated[float, Field(gt=0, description="how far")] = 1.5


@dataclass(frozen=True, config=STRICT)
class Square(Kind):
    """Something square."""

    architecture: Literal["square"] = "square"
    corners: Annotated[int, Field(ge=3, description="how many")] = 4


@dataclass(frozen=True, config=STRICT)
class Grown:
    """Settings of a command that was extended."""

    shape: Annotated[Round | Square, Field(discriminator="architecture")]
    runtime: RuntimeSettings
    speed: Annotated[int, Field(ge=0, description="how fast")] = 7


@pytest.fixture
def grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `conf/` in which nothing but the names of options stands."""
    for name, text in {
        "grown.yaml": "defaults: [_grown, shape: square, runtime: default, hydra: default, _self_]",
        "changed.yaml": "defaults: [_changed, evaluation: full, runtime: default, hydra: default, _self_]\nresults: []",
        "evaluation/full.yaml": "defaults: [base, _self_]",
        "shape/square.yaml": "defaults: [_square, _self_]",
        "shape/round.yaml": "defaults: [_round, _self_]\nradius: 2.5",
        "runtime/default.yaml": "defaults: [base, _self_]",
        "hydra/default.yaml": (CONF / "hydra" / "default.yaml").read_text(encoding="utf-8"),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(composition, "CONF", tmp_path)
    monkeypatch.setattr(ConfigStore.instance(), "repo", copy.deepcopy(ConfigStore.instance().repo))
    shapes = lambda: (Kind, {"round": Round, "square": Square})  # noqa: E731
    monkeypatch.setattr(descriptions, "VARIANTS", [*VARIANTS, shapes])
    register(describe_command(Grown))
    yield
    for kept in (groups, composition.known_keys, composition._content):
        kept.cache_clear()


@pytest.mark.usefixtures("grown")
def test_a_new_field_is_all_that_a_new_field_needs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # the worked example of docs/add_a_field.md: its line is put into the class, and nothing else is changed
    page = (REPOSITORY / "docs" / "add_a_field.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"```python\n(.*)\n```", page)
    source = Path(str(settings_module.__file__)).read_text(encoding="utf-8")
    head, rest = source.split("class RuntimeSettings:\n", 1)
    changed = ModuleType("src.changed_settings")
    monkeypatch.setitem(sys.modules, changed.__name__, changed)
    body, others = rest.split("\n\n\n", 1)
    exec(f"{head}class RuntimeSettings:\n{body}\n{line}\n\n\n{others}", changed.__dict__)
    changed.EvaluateSettings.__name__ = "ChangedSettings"
    register(describe_command(changed.EvaluateSettings))
    schema, results = changed.EvaluateSettings, "results=[a]"
    assert read_settings("changed", [results], schema)[0].runtime.lamp == "green"
    assert read_settings("changed", [results, "runtime.lamp=red"], schema)[0].runtime.lamp == "red"
    for wrong, said in {
        "runtime.lamp=''": "at least 1 character",
        "runtime.lmap=red": "did you mean runtime.lamp?",
    }.items():
        with pytest.raises(ConfigError, match=re.escape(said)):
            read_settings("changed", [results, wrong], schema)
    show_keys("runtime", describe(schema), compose_plain("changed", [])[0])
    assert "colour of the lamp" in capfd.readouterr().out


@pytest.mark.usefixtures("grown")
def test_settings_of_several_kinds(capfd: pytest.CaptureFixture[str]) -> None:
    assert read_settings("grown", [], Grown)[0].shape == Square()
    round_one = read_settings("grown", ["shape=round", "shape.width=2"], Grown)[0].shape
    assert round_one == Round(width=2, radius=2.5)
    assert list(rows(describe(Grown), compose_plain("grown", ["shape=round"])[0]))[:3] == [
        ("shape.width", "4", "how wide"),
        ("shape.architecture", "round", ""),
        ("shape.radius", "2.5", "how far"),
    ]
    with pytest.raises(ConfigError, match="shape.radius = -1.0: Input should be greater than 0"):
        read_settings("grown", ["shape=round", "shape.radius=-1.0"], Grown)
    with pytest.raises(ConfigError, match=r"'shape.corners': does not exist"):
        read_settings("grown", ["shape=round", "shape.corners=5"], Grown)
