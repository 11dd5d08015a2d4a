"""One object a kind of teacher: it is known by its name, or by its user's factory."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from src.core.errors import ConfigError
from src.teacher.item_head.objective import ItemCE
from src.teacher.objective import objective_of, objectives
from src.teacher.settings import ExportSettings, TeacherSettings
from src.teacher.title_lm.objective import TitleLM
from src.teacher.title_lm.ranking_ways import Grounded, ranking_way, ranking_ways
from src.tuning.read_keys import unread
from tests.teacher.builders import SETTINGS
from tests.teacher.title_builders import TITLE_SETTINGS

SOURCE = Path(__file__).parents[2] / "src"


class Mine(ItemCE):
    """Stands for a user's own: it also reads what only `title_lm` reads."""

    name = ""
    own_settings = ("head", "title")


class Nearest(Grounded):
    """Stands for a user's own way of ranking."""

    name = ""


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_teacher")
    vars(module).update(objective=Mine, way=Nearest, number=3, nothing=lambda: None, more=lambda settings: None)
    monkeypatch.setitem(sys.modules, "my_teacher", module)


def test_kinds_are_known_by_their_names() -> None:
    assert set(objectives()) == {"item_ce", "title_lm"}
    assert isinstance(objective_of("item_ce"), ItemCE)
    assert isinstance(objective_of("title_lm"), TitleLM)


def test_every_way_of_ranking_belongs_to_one_kind() -> None:
    ways = [way for kind in objectives().values() for way in kind.rankings]
    assert sorted(ways) == ["constrained", "grounded", "item_head"]
    assert {"item_head", *ranking_ways()} == set(ways)


@pytest.mark.parametrize("name", ["item_ce", "title_lm"])
def test_its_own_settings_exist_and_its_search_space_is_a_file(name: str) -> None:
    kind = objective_of(name)
    settings = {"item_ce": SETTINGS, "title_lm": TITLE_SETTINGS}[name]
    for path in kind.own_settings:
        value: object = settings
        for part in path.split("."):
            value = getattr(value, part)
    assert (SOURCE.parent / "search_spaces" / f"{kind.search_space}.yaml").is_file()
    assert settings.ranking == kind.rankings[0]


def test_an_objective_of_ones_own_is_what_the_settings_name() -> None:
    settings = replace(SETTINGS, objective="my_teacher:objective")
    assert isinstance(objective_of(settings.objective), Mine)
    assert objective_of(settings.objective) is objective_of(settings.objective)
    assert settings.ranking == "item_head"
    # it reads `title` and not `train.head_learning_rate`
    replace(settings, title=TITLE_SETTINGS.title)
    with pytest.raises(ValueError, match=r"head_learning_rate = 0.5 would not be read with teacher.objective = my_tea"):
        replace(settings, train=replace(settings.train, head_learning_rate=0.5))
    with pytest.raises(ValueError, match="'constrained' must be auto or item_head with teacher.objective = my_tea"):
        replace(settings, export=ExportSettings(ranking="constrained"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("title", "cannot be found .* → use item_ce, title_lm, or package.module:factory"),
        ("nowhere:factory", "cannot be found"),
        ("my_teacher:number", "names a int, not a factory"),
        ("my_teacher:nothing", "makes a NoneType, and no TeacherObjective"),
        ("my_teacher:more", r"is not callable as factory\(\)"),
    ],
)
def test_what_is_no_objective_is_refused_with_its_settings(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TeacherSettings(objective=name)
    with pytest.raises(ConfigError, match=said):
        objective_of(name)


def test_a_way_of_ones_own_is_for_a_teacher_that_writes() -> None:
    own = ExportSettings(ranking="my_teacher:way", beams=1)
    assert isinstance(ranking_way(replace(TITLE_SETTINGS, export=own).ranking), Nearest)
    with pytest.raises(ValueError, match="must be auto or item_head with teacher.objective = item_ce"):
        replace(SETTINGS, export=own)
    for name, said in (("my_teacher:objective", "makes a Mine, and no RankingWay"), ("nowhere:way", "cannot be found")):
        with pytest.raises(ValueError, match=said):
            replace(TITLE_SETTINGS, export=replace(own, ranking=name))


@pytest.mark.parametrize(
    ("key", "objective", "read"),
    [
        ("teacher.title.start_rate", "title_lm", True),
        ("teacher.title.start_rate", "item_ce", False),
        ("teacher.title.start_rate", "my_teacher:objective", True),
        ("teacher.head.init", "title_lm", False),
        ("teacher.head.init", "my_teacher:objective", True),
        ("teacher.train.head_learning_rate", "item_ce", True),
        ("teacher.train.head_learning_rate", "my_teacher:objective", False),
        ("teacher.train.learning_rate", "my_teacher:objective", True),
    ],
)
def test_which_searched_keys_are_read_follows_from_the_objective(key: str, objective: str, read: bool) -> None:
    found = unread("teacher", key, lambda other: [objective] if other == "teacher.objective" else [])
    assert (found is None) == read


def test_settings_are_checked_without_a_library_of_language_models() -> None:
    code = (
        "import sys; from src.teacher.settings import TeacherSettings; "
        "TeacherSettings(); print({'transformers', 'peft'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE.parent)
    assert said.stdout.strip() == "set()"
