"""The published numbers. Another folder: ``pytest tests/golden --golden-dir DIR`` (see README.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.families import FAMILIES, Case, cases_of, check_coverage, unknown_families
from tests.golden.sources import check_integrity, read_manifest


@pytest.fixture
def golden_dir(request: pytest.FixtureRequest) -> Path:
    """The folder under test."""
    folder: Path = request.config.getoption("--golden-dir")
    return folder.resolve()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a case that the folder holds."""
    if "case" in metafunc.fixturenames:
        root = metafunc.config.getoption("--golden-dir").resolve()
        cases = [case for family in FAMILIES for case in cases_of(root, family)]
        metafunc.parametrize("case", cases, ids=[f"{case.family}-{case.name}" for case in cases])


def test_the_folder_has_a_manifest_that_names_known_families_only(golden_dir: Path) -> None:
    assert read_manifest(golden_dir)
    assert unknown_families(golden_dir) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_family_is_whole(golden_dir: Path, family: str) -> None:
    check_integrity(golden_dir, family)
    check_coverage(golden_dir, family)


def test_ours_gives_the_published_numbers(case: Case) -> None:
    case.run()
