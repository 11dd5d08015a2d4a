"""Evaluate the students and teachers of finished results side by side, on validation and on the test split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from src.cli.entry import Entry, Work
from src.config.base_configs import SCHEMAS

if TYPE_CHECKING:
    from src.pipeline.settings import EvaluateSettings

EXAMPLES = (
    ("'results=[result/result_A,result/result_B]'", "two results side by side"),
    ("'results=[result/result_A]' 'evaluation.ks=[1,10]'", "with other cut-offs"),
    ("'results=[result/result_A]' evaluation.mask_history=true", "without items that the user has seen"),
    ("'results=[result/result_A]' runtime.device=cpu", "on the CPU"),
    ("'results=[result/result_A]' evaluation.batch_size=512", "in less memory"),
)


def work() -> Work[EvaluateSettings, Any]:
    """The work behind the command; what it needs is imported here, after the command line was judged."""
    from src.pipeline.evaluate_all import check_results, run_eval_all

    return Work(check_results, run_eval_all)


ENTRY: Entry[EvaluateSettings] = Entry(
    "run_eval_all", "evaluate", __doc__, SCHEMAS["evaluate"], work, examples=EXAMPLES
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
