"""The page: sections put into a template that escapes all text, written as one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from optuna.trial import TrialState
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from src.core.paths import write_text
from src.tuning.html_report.answer import answer, title
from src.tuning.html_report.sections import sections
from src.tuning.html_report.sources import Result, read_result
from src.tuning.html_report.wording import moment, number

REPORT = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"
_CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": "hover", "modeBarButtons": [["toImage"]]}


def write_report(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write ``report.html`` into a result folder from what lies there; returns its path.

    ``manifest`` is the folder's manifest (which need not have been written yet). The journal is only read; RUNNING
    trials are shown as such. Raises ``ArtefactError`` for a JSON file that is damaged and ``OSError`` when the folder
    cannot be written.
    """
    path = folder / REPORT
    write_text(path, render(read_result(folder, manifest)))
    return path


def render(result: Result) -> str:
    """The page as text: about 5 MB, nearly all of it plotly.js."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "moment": moment}
    environment.globals["draw"] = _Drawing()
    return environment.get_template("page.html").render(
        title=title(result),
        manifest=result.manifest,
        answer=answer(result),
        replay=result.replay,
        sections=sections(result),
        states=[state.name for state in TrialState],
        plotly=get_plotlyjs(),
    )


class _Drawing:
    """Turns figures into markup, each with its own element id."""

    def __init__(self) -> None:
        self._drawn = 0

    def __call__(self, figure: Any) -> str:
        self._drawn += 1
        name = f"figure-{self._drawn}"
        # plotly escapes the JSON in its markup; `inert` has escaped the texts in the figure
        markup: str = to_html(figure, config=_CONFIG, include_plotlyjs=False, full_html=False, div_id=name)
        return markup
