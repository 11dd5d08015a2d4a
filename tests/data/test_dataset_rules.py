"""Rules of the one door: what it refuses, and that every setting has a reader and a place in conf/."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from src.core.errors import ConfigError, DataError
from src.data.adapters import ADAPTERS
from src.data.dataset import load_dataset
from src.data.settings import DatasetSettings
from tests.data.toy_sources import write_dllm2rec, write_recbole

REPOSITORY = Path(__file__).resolve().parents[2]
GROUP = REPOSITORY / "conf" / "dataset"
FIELDS = {field.name: field.default for field in fields(DatasetSettings)}


def _composed(name: str) -> dict[str, Any]:
    """A file of the group over the defaults, as Hydra would compose it."""
    own = yaml.safe_load((GROUP / f"{name}.yaml").read_text())
    assert own.pop("defaults") == ["base", "_self_"]
    return {**FIELDS, "root": str(FIELDS["root"]), **own}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_has_a_file_that_its_adapter_reads(adapter: str) -> None:
    composed = _composed(adapter)
    assert composed["adapter"] == adapter
    assert set(composed) == set(FIELDS)
    root = composed["root"].replace("${.name}", composed["name"])
    assert not Path(root).is_absolute()
    settings = DatasetSettings(**{**composed, "root": Path("/nowhere") / root})
    if adapter == "sample":
        load_dataset(settings)
    else:
        with pytest.raises(DataError, match="/nowhere/data/raw"):
            load_dataset(settings)


def test_every_module_of_the_package_that_registers_is_known_by_what_it_registers() -> None:
    folder = REPOSITORY / "src" / "data" / "adapters"
    files = {path.stem for path in folder.glob("*.py") if "\nregister(" in path.read_text()}
    assert set(ADAPTERS) == files


OWN = """
from src.data.adapters import Adapter
from src.data.adapters.sample import load


def factory():
    return Adapter(load, frozenset({"sample_users", "sample_seed"}))


def broken():
    return 3
"""


def test_an_adapter_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_adapter.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    ours = load_dataset(DatasetSettings(sample_users=60))
    assert load_dataset(DatasetSettings(adapter="own_adapter:factory", sample_users=60)).fingerprints() == (
        ours.fingerprints()
    )
    with pytest.raises(ConfigError, match=r"sample_items = 60: is not read by dataset.adapter = own_adapter:factory"):
        load_dataset(DatasetSettings(adapter="own_adapter:factory", sample_items=60))
    with pytest.raises(ConfigError, match=r"'own_adapter:broken': gave a int, not an Adapter"):
        load_dataset(DatasetSettings(adapter="own_adapter:broken"))


@pytest.mark.parametrize("name", ["csv", "no_such_module:load", "own_adapter:nothing", ":", ".x:y"])
def test_an_adapter_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be found .*use dllm2rec, llara, movielens, recbole, sample, table"):
        load_dataset(DatasetSettings(adapter=name))


def test_every_field_is_read_somewhere() -> None:
    read = set()
    for path in (REPOSITORY / "src" / "data").rglob("*.py"):
        if path.name != "settings.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "settings":
                    read.add(node.attr)
    assert set(FIELDS) <= read


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"adapter": ""}, "adapter"),
        ({"order": "file"}, "order = file knows no time"),
        ({"untitled": "ignore"}, "untitled"),
        ({"min_user_interactions": 0}, "min_user_interactions"),
        ({"window": 0}, "window"),
        ({"min_history": -1}, "min_history"),
        ({"min_rating": math.nan}, "min_rating"),
        ({"split": "random"}, "split"),
        ({"train_share": 1.0}, "train_share"),
        ({"train_share": 0.9, "validation_share": 0.1}, "train_share + validation_share"),
        ({"name": "../secret"}, "name"),
        ({"sample_users": 3}, "sample_users"),
        ({"windows": 3}, "windows"),
        ({"title_year": True, "title_handling": "as_released"}, "title_year"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DatasetSettings(**wrong)
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "ignored"),
    [
        ({"download": True, "min_rating": 3.0, "titles_file": "x"}, {"download", "titles_file"}),
        ({"split": "leave_one_out", "train_share": 0.7}, {"train_share"}),
        ({"adapter": "llara", "split": "leave_one_out", "min_users": 3}, {"split", "min_users"}),
        ({"adapter": "dllm2rec", "train_share": 0.5, "sample_seed": 3}, {"train_share", "sample_seed"}),
        ({"adapter": "recbole", "title_handling": "as_released"}, {"title_handling"}),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(settings: dict[str, Any], ignored: set[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset(DatasetSettings(**settings))
    assert {problem.field for problem in caught.value.problems} == {f"dataset.{name}" for name in ignored}


def test_a_threshold_needs_ratings() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.min_rating = 3\.0: sample has no ratings"):
        load_dataset(DatasetSettings(min_rating=3.0))


def test_too_few_users_items_and_examples_are_reported_together(tmp_path: Path) -> None:
    settings = replace(write_recbole(tmp_path), min_users=13, min_items=25, min_history=50)
    with pytest.raises(DataError) as caught:
        load_dataset(settings)
    assert [problem.field for problem in caught.value.problems] == [
        "users", "items", "train examples", "validation examples", "test examples",
    ]  # fmt: skip
    assert "at least dataset.min_users = 13 are needed" in str(caught.value)
    assert "lower dataset.min_history (50)" in str(caught.value)


def test_ready_made_splits_can_be_too_small_as_well(tmp_path: Path) -> None:
    settings = replace(write_dllm2rec(tmp_path), min_items=25, min_history=11)
    with pytest.raises(DataError) as caught:
        load_dataset(settings)
    assert [problem.field for problem in caught.value.problems] == [
        "items", "train examples", "validation examples", "test examples",
    ]  # fmt: skip


def test_a_rating_that_nobody_gave_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="users = 0"):
        load_dataset(replace(write_recbole(tmp_path), min_rating=99.0))


def test_nothing_is_written_into_the_source(tmp_path: Path) -> None:
    settings = write_recbole(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    load_dataset(settings)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_this_room_needs_no_search_no_hydra_and_no_language_model() -> None:
    code = (
        "import sys, src.data.dataset, src.data.candidates, src.data.teacher_outputs; "
        "print(*{'ray', 'optuna', 'hydra', 'omegaconf', 'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr
