"""Steps of many tiny operations: a second thread would only wait for the first."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """For all tests of this folder."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package", autouse=True)
def imports_are_not_collected() -> None:
    """No collection looks at what libraries brought, as in a worker (`src.tuning.trainable`): it would be looked at
    whenever memory is given back."""
    gc.collect()
    gc.freeze()
