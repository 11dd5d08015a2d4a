"""Say what a dataset is like, and what of that matters for the method; nothing is trained or written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.cli.entry import Entry, FolderlessEntry, Work
from src.config.base_configs import SCHEMAS

if TYPE_CHECKING:
    from src.data.settings import DescribeSettings

EXAMPLES = (
    ("", "the sample data"),
    ("dataset=recbole dataset.root=PATH/ml-100k", "atomic files of RecBole"),
    ("dataset=table dataset.root=events.csv", "a log of your own"),
    ("dataset=movielens_1m", "MovieLens 1M, fetched when it is missing"),
    ("dataset=table dataset.root=events.csv dataset.duplicates=drop", "with other rules"),
)


def work() -> Work[DescribeSettings, Any]:
    """The work behind the command; what it needs is imported here, after the command line was judged."""
    from src.core.logging import console
    from src.data.dataset import load_dataset
    from src.data.describe import describe, format_description

    def tell(settings: DescribeSettings, data: Any, _: Any) -> None:
        console.print(format_description(describe(data)), markup=False)

    return Work(lambda settings: load_dataset(settings.dataset), tell)


ENTRY: Entry[DescribeSettings] = FolderlessEntry(
    "describe", "describe", __doc__, SCHEMAS["describe"], work, examples=EXAMPLES
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
