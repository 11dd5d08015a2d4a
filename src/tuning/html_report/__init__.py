"""`report.html`: what a search found, as one page that opens without a network.

`sources` reads a result folder; `answer` says what came out; `arms`, `figures`, `coordinates`, `spaces` and `costs`
draw in the one `style`; `tables` lists; `sections` orders it all, made of `blocks`; `page` writes the file.
"""

from src.tuning.html_report.page import REPORT, write_report

__all__ = ["REPORT", "write_report"]
