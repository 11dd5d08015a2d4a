"""`report.html`: what a search found, as one page that opens without a network.

`sources` reads a result folder; the templates say what is in it, in its order. They ask `answer` for the verdicts,
`tables` for rows, `figures` for arms and learning curves, `plots` for Optuna's own plots.
"""

from src.tuning.html_report.page import write_report

__all__ = ["write_report"]
