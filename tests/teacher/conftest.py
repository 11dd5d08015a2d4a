"""One thread a test process, and small random language models in ordinary Hugging Face folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.teacher.builders import save_random_bert, save_random_llama


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder."""
    return save_random_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder."""
    return save_random_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(params=["llama", "bert"])
def llm(request: pytest.FixtureRequest) -> Path:
    """Both kinds in turn."""
    folder: Path = request.getfixturevalue(request.param)
    return folder
