"""`report.html`: what a search found, as one page that opens without a network.

`sources` reads a result folder; `answer` says what came out; `figures` draws arms and learning curves, `plots` restyles
Optuna's own plots; `tables` lists; `sections` gathers what there is to show, and the templates say it in their order.
"""

from src.tuning.html_report.page import REPORT, write_report

__all__ = ["REPORT", "write_report"]
