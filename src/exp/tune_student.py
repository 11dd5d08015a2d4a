"""Search the student alone, without a teacher: what a fair comparison with a distilled student starts from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.cli.entry import Entry, Work
from src.cli.resume import RESUMABLE
from src.config.base_configs import SCHEMAS

if TYPE_CHECKING:
    from src.tuning.search_settings import SearchSettings

EXAMPLES = (
    ("", "20 trials on the sample data"),
    ("trials=50 tuning.sampler=random", "more trials, drawn at random"),
    ("student=caser tuning.search_space=my_space.yaml", "a search space of your own"),
    ("tuning.cpu_per_trial=2 tuning.gpu_per_trial=0.5", "two trials share a GPU"),
    ("resume=result/result_A trials=40", "go on with a search, with more trials"),
)


def work() -> Work[SearchSettings, Any]:
    """The work behind the command; what it needs is imported here, after the command line was judged."""
    from src.tuning.preflight import check_resumed
    from src.tuning.student_search import check, run

    return Work(check, run, check_resumed)


ENTRY: Entry[SearchSettings] = Entry(
    "tune_student", "tune_student", __doc__, SCHEMAS["tune_student"], work, RESUMABLE, examples=EXAMPLES
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
