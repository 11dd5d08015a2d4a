"""The page: what lies in a result folder, put into templates that escape all text, written as one file."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from optuna.trial import TrialState
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from src.core.paths import write_text
from src.core.result_files import REPORT
from src.core.timing import duration
from src.evaluation.comparison import metric_title
from src.tuning.html_report import answer, figures, plots, tables, wording
from src.tuning.html_report.sources import ReportedResult, read_result

_TEMPLATES = Path(__file__).parent / "templates"
_CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": "hover", "modeBarButtons": [["toImage"]]}


def write_report(folder: Path, manifest: Mapping[str, Any]) -> Path:
    """Write ``report.html`` into a result folder from what lies there.

    Args:
        folder: of the search; its journal is only read, and RUNNING trials are shown as such.
        manifest: the folder's manifest, which need not have been written yet.

    Returns:
        The path of the page.

    Raises:
        ArtefactError: a file is damaged.
        OSError: the folder cannot be written.
    """
    path = folder / REPORT
    write_text(path, render(read_result(folder, manifest)))
    return path


def render(result: ReportedResult) -> str:
    """The page as text: about 5 MB, nearly all of it plotly.js."""
    places = FileSystemLoader(_TEMPLATES)
    environment = Environment(
        loader=places, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {name: getattr(wording, name) for name in ("number", "count", "change")}
    environment.filters |= {"duration": duration, "metric_title": metric_title}
    environment.globals |= {"fair": answer, "figures": figures, "plots": plots, "tables": tables, "draw": _draw()}
    environment.globals |= {"states": [state.name for state in TrialState], "plotly": get_plotlyjs()}
    return environment.get_template("page.html").render(result=result, sections=sections(result))


def sections(result: ReportedResult) -> list[str]:
    """The names of the sections that have something to show, in reading order; each is a template."""
    curves = any(trial.intermediate_values for view in result.searches for trial in view.trials)
    shown = {
        "arms": result.fair is not None,
        "comparison": result.comparison is not None,
        "segments": result.segments is not None,
        "examples": result.examples is not None,
        "curves": curves,
        "search": bool(result.completed),
        "trials": bool(result.studies),
        "record": bool(result.times or result.documents),
    }
    return [name for name, there in shown.items() if there]


def _draw() -> Any:
    """What turns figures into markup, each with its own element id."""
    numbers = count(1)

    def draw(figure: Any) -> str:
        # plotly escapes the JSON in its markup; `inert` has escaped the texts in the figure
        name = f"figure-{next(numbers)}"
        return str(to_html(figure, config=_CONFIG, include_plotlyjs=False, full_html=False, div_id=name))

    return draw
