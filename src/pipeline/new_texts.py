"""The language model of new items, for who serves a student: reached only where there are any."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from src.data.id_map import IdMap
    from src.data.item_text import TextSource


def text_embedder(encoder: str) -> Callable[[TextSource, IdMap], Tensor]:
    """What embeds the texts of new items.

    Args:
        encoder: where the language model lies now; empty: where it lay when the student was trained.
    """

    def embed(source: TextSource, items: IdMap) -> Tensor:
        from src.teacher.labelling.title_embeddings import embed_as

        return embed_as(source, encoder, items)

    return embed
