"""Say what a dataset is like, and what of that matters for the method; nothing is trained or written."""

from __future__ import annotations

import sys
from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from src.core.errors import ProblemsFound
from src.core.logging import console, log_to
from src.core.settings import STRICT
from src.data.dataset import load_dataset
from src.data.describe import describe, format_description
from src.data.settings import DatasetSettings
from src.exp.door import read_settings
from src.exp.entry import show_problems
from src.exp.help import show_help

CONFIG = "describe"


@dataclass(frozen=True, config=STRICT)
class DescribeSettings:
    """What is described."""

    dataset: Annotated[DatasetSettings, Field(description="the data")] = DatasetSettings()


def execute(arguments: list[str]) -> int:
    """Print the description of the dataset that the arguments name; returns the exit code."""
    if any(argument in ("--help", "-h") for argument in arguments):
        show_help("describe", __doc__ or "", CONFIG, DescribeSettings)
        return 0
    log_to(None)
    try:
        settings, _ = read_settings(CONFIG, arguments, DescribeSettings)
        console.print(format_description(describe(load_dataset(settings.dataset))), markup=False)
    except ProblemsFound as error:
        show_problems(error)
        return 2
    return 0


def main() -> None:
    """Entry point."""
    sys.exit(execute(sys.argv[1:]))


if __name__ == "__main__":
    main()
