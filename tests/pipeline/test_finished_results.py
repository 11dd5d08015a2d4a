"""A result folder that `run_eval_all` is given: finished and of this version, or refused before anything is ranked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.core.errors import AnyoError, ArtefactError
from src.core.paths import MANIFEST, write_json
from src.core.settings import nested_plain
from src.pipeline.evaluate_all import FinishedResult
from tests.pipeline.toy import toy_settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small experiment's settings as a search keeps them."""
    return {**nested_plain(toy_settings(tmp_path_factory.mktemp("settings"))), "trials": 3}


@pytest.fixture
def result(tmp_path: Path, settings: dict[str, Any]) -> Path:
    """A finished result folder of a search."""
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    write_json(folder / MANIFEST, {"fingerprints": {"dataset": "d"}, "search": {"trials": {"COMPLETE": 3, "FAIL": 1}}})
    return folder


def test_a_finished_result_is_read(result: Path) -> None:
    found = FinishedResult.read(result)
    assert (found.experiment.student.width, found.trials()) == (8, 4)
    assert found.manifest["fingerprints"] == {"dataset": "d"}


@pytest.mark.parametrize("kind", ["file", "empty", "gone"])
def test_what_is_no_result(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=kind):
        FinishedResult.read(tmp_path / kind)


@pytest.mark.parametrize(
    "manifest",
    ["[]", "{}", "null", "{", {"fingerprints": None}, {"fingerprints": []}, {"fingerprints": {"dataset": 3}},
     {"fingerprints": {}, "search": {"trials": {"COMPLETE": "3"}}}, {"fingerprints": {}, "search": []}],
)  # fmt: skip
def test_a_manifest_of_another_shape(result: Path, manifest: Any) -> None:
    (result / MANIFEST).write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
    with pytest.raises(ArtefactError, match=MANIFEST):
        FinishedResult.read(result)


@pytest.mark.parametrize("change", ["student: []", "student: {width: 8, colour: red}", "seed: null", "a: &a [*a]"])
def test_settings_of_another_version(result: Path, settings: dict[str, Any], change: str) -> None:
    kept = {key: value for key, value in settings.items() if key != change.split(":")[0]}
    (result / "settings.yaml").write_text(yaml.safe_dump(kept) + change + "\n")
    with pytest.raises(AnyoError, match=r"settings\.yaml"):
        FinishedResult.read(result)
