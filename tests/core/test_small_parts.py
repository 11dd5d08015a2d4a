"""Errors, hardware, timing, git."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from src.core.errors import AnyoError, ArtefactError, ConfigError, DataError, Problem, ProblemsFound, first_line, gather
from src.core.git_info import git_info
from src.core.hardware import package_versions, resolve_device
from src.core.plugins import build_plugin
from src.core.timing import Stopwatch


def test_a_problem_tells_field_value_rule_and_next_step() -> None:
    assert str(Problem("student.width", 0, "must be at least 1", "use 64")) == (
        "student.width = 0: must be at least 1 → use 64"
    )
    assert str(Problem("x", "a", "is wrong")) == "x = 'a': is wrong"


def test_problems_are_reported_together_in_one_family() -> None:
    error = ConfigError([Problem("a", 1, "is wrong"), Problem("b", 2, "is wrong too")])
    assert str(error).splitlines() == ["a = 1: is wrong", "b = 2: is wrong too"]
    for kind in (ConfigError, DataError, ArtefactError):
        found = kind.one("a", 1, "is wrong")
        assert type(found) is kind
        assert isinstance(found, AnyoError)


def test_an_error_without_a_problem_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ProblemsFound([])


def test_a_device_that_is_not_there_is_refused_before_training() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="runtime.device"):
        resolve_device("gpu0")


def test_a_cuda_device_needs_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="runtime.device=cpu"):
        resolve_device("cuda")


@pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_a_gpu_always_has_an_index(monkeypatch: pytest.MonkeyPatch, name: str, index: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(name) == torch.device("cuda", index)
    # what a worker does first with it; without an index torch refuses
    assert torch.cuda._utils._get_device_index(resolve_device(name)) == index
    with pytest.raises(ConfigError, match="runtime.device = 'cuda:2': is not there: this machine has 2"):
        resolve_device("cuda:2")


def test_versions_name_what_decides_results() -> None:
    assert package_versions()["torch"] == torch.__version__


def test_a_stopwatch_adds_up_also_when_the_block_fails() -> None:
    watch = Stopwatch()
    watch.add("a", 1.5)
    watch.add("a", 0.5)
    with pytest.raises(KeyError), watch.measure("b"):
        raise KeyError
    assert watch.seconds["a"] == 2.0
    assert watch.seconds["b"] >= 0.0


def test_git_info_names_a_revision_or_says_none() -> None:
    info = git_info()
    assert info["revision"] is None or len(info["revision"]) == 40
    assert (info["revision"] is None) == (info["dirty"] is None)


def test_gather_reports_every_checks_problems_in_order() -> None:
    def data() -> None:
        raise DataError.one("file", "a.inter", "is missing")

    def device() -> None:
        raise ConfigError.one("runtime.device", "cuda", "is not there")

    with pytest.raises(ConfigError) as caught:
        gather(data, lambda: None, device)
    assert [problem.field for problem in caught.value.problems] == ["file", "runtime.device"]
    gather(lambda: None)


@pytest.mark.parametrize("name", ["nothing", "nothing:factory", "math:nothing", ".x:y", "os:path", ":factory"])
def test_a_plug_in_that_cannot_be_built_is_refused_by_name(name: str) -> None:
    ours: dict[str, Callable[[int], int]] = {"double": lambda number: 2 * number}
    assert build_plugin("active.policy", "double", ours, 4) == 8
    assert build_plugin("active.policy", "math:factorial", ours, 4) == 24
    with pytest.raises(ConfigError, match=r"active\.policy.*use double, or package\.module:factory"):
        build_plugin("active.policy", name, ours, 4)


def test_an_error_is_told_in_one_line_even_where_it_says_nothing() -> None:
    assert first_line(ValueError("\n  one \ntwo")) == "one"
    assert first_line(ValueError("a" * 300), most=200) == "a" * 200
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
