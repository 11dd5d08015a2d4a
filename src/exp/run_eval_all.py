"""Evaluate the students and teachers of finished results side by side, on validation and on the test split.

python -m src.exp.run_eval_all 'results=[result/result_A,result/result_B]'
"""

from __future__ import annotations

from src.exp.entry import Entry
from src.pipeline.evaluate_all import EvaluateSettings, check_results, run_eval_all

ENTRY: Entry[EvaluateSettings] = Entry(
    command="run_eval_all",
    config_name="evaluate",
    description=__doc__,
    schema=EvaluateSettings,
    check=check_results,
    run=run_eval_all,
)


def main() -> None:
    """Entry point."""
    ENTRY.main()


if __name__ == "__main__":
    main()
