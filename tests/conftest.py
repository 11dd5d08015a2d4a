"""Options of the whole test run."""

from __future__ import annotations

from pathlib import Path

import pytest

GOLDEN_VECTORS = Path(__file__).parent / "golden" / "vectors"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--golden-dir``: run tests/golden on another folder of vectors."""
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=GOLDEN_VECTORS,
        help="folder of golden vectors: MANIFEST.json and one folder a family (default: tests/golden/vectors)",
    )
