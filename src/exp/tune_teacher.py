"""Search the teacher's training (iLoRA): every trial trains one on the same rows and is judged on the same sample.

The best teacher lies in the result; run_teacher params=…/best_params.yaml trains it again and labels with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.cli.entry import Entry, Work
from src.cli.resume import RESUMABLE
from src.config.base_configs import SCHEMAS

if TYPE_CHECKING:
    from src.tuning.search_settings import SearchSettings

EXAMPLES = (
    ("", "8 trials on the sample data"),
    ("teacher=title", "the teacher that writes titles"),
    ("teacher.train_rows=2000 trials=20", "less to learn from, more trials"),
    ("tuning.pruner=asha tuning.reduction_factor=2", "another way to end poor trials early"),
    ("resume=result/result_A trials=16", "go on with a search, with more trials"),
)


def work() -> Work[SearchSettings, Any]:
    """The work behind the command; what it needs is imported here, after the command line was judged."""
    from src.tuning.preflight import check_resumed
    from src.tuning.teacher_search import check, run

    return Work(check, run, check_resumed)


ENTRY: Entry[SearchSettings] = Entry(
    "tune_teacher", "tune_teacher", __doc__, SCHEMAS["tune_teacher"], work, RESUMABLE, examples=EXAMPLES
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
