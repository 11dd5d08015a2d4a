"""The worked example of docs/extend/add_a_dataset_adapter.md runs, and keeps the contract."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.core.paths import REPOSITORY
from src.data.settings import DatasetSettings
from src.exp.describe import ENTRY
from tests.contracts.adapter import AdapterContract

PAGE = (REPOSITORY / "docs" / "extend" / "add_a_dataset_adapter.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
ADAPTER, TEST = (next(block for block in BLOCKS if name in block) for name in ("# my_adapter.py", "# tests/test_my"))


@pytest.fixture(autouse=True)
def _adapter_of_the_page(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "my_adapter.py").write_text(ADAPTER)
    with monkeypatch.context() as patched:
        patched.syspath_prepend(str(folder))
        yield


def make(folder: Path, changed: bool) -> DatasetSettings:
    """As the page's own test does."""
    scope: dict[str, type[AdapterContract]] = {}
    exec(TEST, scope)
    return scope["TestMyAdapter"]().make(folder, changed)


class TestAdapterOfThePage(AdapterContract):
    """The contract on the page's adapter."""

    def make(self, folder: Path, changed: bool) -> DatasetSettings:
        """The page's source."""
        return make(folder, changed)


def test_the_command_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, False)
    command = PAGE.partition("python -m src.exp.describe ")[2].partition("```")[0].replace("\\\n", " ").split()
    given = [f"dataset.root={tmp_path}" if word.startswith("dataset.root=") else word for word in command]
    assert ENTRY.execute([*given, "dataset.min_items=5"]) == 0
    assert "interactions        108" in capsys.readouterr().out
