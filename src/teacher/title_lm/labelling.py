"""The labels of a teacher that writes titles."""

from __future__ import annotations

from torch import Tensor

from src.teacher.labelling.labels import Best, CatalogueLabeller
from src.teacher.settings import TeacherSettings
from src.teacher.title_lm.model import TitleTeacher
from src.teacher.title_lm.scoring import title_catalogue


def title_labeller(writer: TitleTeacher, settings: TeacherSettings) -> CatalogueLabeller:
    """Top N by the way of ranking that the settings name; equal scores by ascending id.

    Distances: −log P(title, end | prompt) of the constrained ranking, the embeddings' distance of the grounded one.
    Raises ``ConfigError`` when N exceeds the catalogue.
    """
    export = settings.export
    catalogue = title_catalogue(writer, export, settings.ranking, export.top_n)
    catalogue.tell_duplicates()
    return CatalogueLabeller(catalogue, export, best_first, catalogue.facts())


def best_first(scores: Tensor, n: int) -> Best:
    """The n highest scores of ``[B, V]``, equal ones by ascending id."""
    order = scores.sort(dim=1, descending=True, stable=True)
    return Best(order.indices[:, :n], order.values[:, :n])
