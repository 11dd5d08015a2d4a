"""The ways in which a teacher that writes titles ranks the catalogue: ``teacher.export.ranking``.

A way is one class. ``teacher.export.ranking=package.module:factory`` names one of your own, where ``factory()`` returns
a `RankingWay`. Settings are checked by these objects before any library of language models has been imported: what
needs one imports it in the method.
"""

# ruff: noqa: B027 - a way overrides the check that it has something to say about

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from src.core.plugins import build_own

if TYPE_CHECKING:
    from torch import Tensor

    from src.teacher.settings import ExportSettings, TeacherSettings
    from src.teacher.title_lm.model import TitleTeacher
    from src.teacher.title_lm.scoring import TitleScorer

_FIELD = "teacher.export.ranking"
_PAGE = "see docs/extend/add_a_ranking_way.md"


class RankingWay(ABC):
    """How scores for all items come out of a model that writes."""

    #: its value in ``teacher.export.ranking``; one of your own is known by its factory's
    name: ClassVar[str] = ""
    #: settings below ``teacher.export`` that decide its scores, and that not every way reads: ``beams``
    own_export: ClassVar[tuple[str, ...]] = ()

    def check_settings(self, settings: TeacherSettings) -> None:
        """Raise ``ValueError`` for settings that this way contradicts."""

    def sequences(self, export: ExportSettings) -> int:
        """How many unfinished titles are followed for a prompt at once: the memory estimate counts their cache."""
        return 1

    @abstractmethod
    def scorer(self, writer: TitleTeacher, export: ExportSettings, listed: int) -> TitleScorer:
        """Wrap a teacher as one with a score for every item.

        Args:
            writer: the teacher that writes.
            export: batch sizes and beams.
            listed: how many of the best items somebody will look at; the order of all others may be left open.
        """

    def dry_run(self, writer: TitleTeacher, history: Tensor, length: Tensor) -> None:
        """Rank a few histories once, as labelling will rank many: whether a model and its cache can do it."""
        export = writer.settings.export
        self.scorer(writer, export, export.top_n)(history, length)


_REGISTERED: dict[str, RankingWay] = {}


def register_way(kind: type[RankingWay]) -> type[RankingWay]:
    """Make a way known by its name."""
    _REGISTERED[kind.name] = kind()
    return kind


@register_way
class Constrained(RankingWay):
    """Beams along the tree of all titles: log-probabilities, every answer an item."""

    name = "constrained"
    own_export = ("beams",)

    def check_settings(self, settings: TeacherSettings) -> None:
        """Require a beam for each item that is to be listed."""
        export = settings.export
        if export.beams < export.top_n:
            raise ValueError(f"teacher.export.beams = {export.beams} must be at least export.top_n = {export.top_n}")

    def sequences(self, export: ExportSettings) -> int:
        """Follow all beams at once."""
        return export.beams

    def scorer(self, writer: TitleTeacher, export: ExportSettings, listed: int) -> TitleScorer:
        """See `ConstrainedScorer`."""
        from src.teacher.title_lm.scoring import ConstrainedScorer

        return ConstrainedScorer(writer, export, listed)


@register_way
class Grounded(RankingWay):
    """A free answer, and the titles nearest to it: distances."""

    name = "grounded"

    def scorer(self, writer: TitleTeacher, export: ExportSettings, listed: int) -> TitleScorer:
        """See `GroundedScorer`."""
        from src.teacher.title_lm.scoring import GroundedScorer

        return GroundedScorer(writer, export)

    def dry_run(self, writer: TitleTeacher, history: Tensor, length: Tensor) -> None:
        """Compare an answer with a few titles alone: to embed all would take long."""
        from src.teacher.title_lm.scoring import ground_few

        ground_few(writer, history, length)


def ranking_ways() -> Mapping[str, RankingWay]:
    """Every way of this project by its name; the first is meant by ``auto``."""
    return _REGISTERED


def ranking_way(name: str) -> RankingWay:
    """The way that ``teacher.export.ranking`` names.

    Raises:
        ConfigError: there is none of that name, its factory cannot be imported, or it makes something else.
    """
    return _REGISTERED[name] if name in _REGISTERED else _own(name)


@cache
def _own(name: str) -> RankingWay:
    """What a user's factory makes."""
    return build_own(_FIELD, name, _REGISTERED, "factory()", RankingWay, step=_PAGE)  # type: ignore[type-abstract]  # it is only asked for
