"""The main job: data, student baseline, teacher and its outputs (reused where they are in the cache), then a search
over the distillation with Optuna through Ray Tune. The result holds the best student beside the baseline.

protocol=fair asks whether distillation helped: every arm gets the same trials, and several seeds.
resume=result/result_… goes on with a search that was interrupted, or adds trials (trials=N).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.cli.entry import Entry, Work
from src.cli.resume import RESUMABLE
from src.config.base_configs import SCHEMAS

if TYPE_CHECKING:
    from src.tuning.search_settings import TuneSettings

EXAMPLES = (
    ("", "the whole path on the sample data, 20 trials"),
    ("protocol=fair trials=10", "does distillation help? equal budgets, several seeds"),
    ("dataset=movielens student=gru4rec", "another dataset, another student"),
    ("trials=50 warm_start=result/result_A", "begin with an earlier search's best"),
    ("resume=result/result_A trials=40", "go on with a search, with more trials"),
)


def work() -> Work[TuneSettings, Any]:
    """The work behind the command; what it needs is imported here, after the command line was judged."""
    from src.tuning.distill_search import check, run
    from src.tuning.preflight import check_resumed

    return Work(check, run, check_resumed)


ENTRY: Entry[TuneSettings] = Entry("tune_distill", "tune", __doc__, SCHEMAS["tune"], work, RESUMABLE, examples=EXAMPLES)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
