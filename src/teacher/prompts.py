"""What the language model reads: a history as titles, each followed by a place for its recommender embedding.

Titles are tokenised once for the whole catalogue; a batch of prompts is put together from those pieces by indexing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedTokenizerBase

from src.core.data_utils import fingerprint
from src.core.errors import ConfigError, DataError, ModelError
from src.data.id_map import IdMap
from src.teacher.settings import PromptSettings

PLACEHOLDER = "[HistoryEmb]"
PREFIX = "Picked one after the other:"
SUFFIX = " The next pick:"

#: rows whose prompts are measured at once
COUNTED_AT_ONCE = 4096

_SHOWN = 5


class PromptBatch(NamedTuple):
    """B prompts of at most S tokens, padded on one side (which one, says whoever lays them out).

    ``token_ids`` ``[B, S]`` int64 (a placeholder has the id that the tokenizer gave it, which the embedding table need
    not have); ``attention_mask`` ``[B, S]`` int64, 1 for real tokens; ``items`` ``[B, S]`` int64: the item whose
    embedding belongs to a placeholder, V everywhere else.
    """

    token_ids: Tensor
    attention_mask: Tensor
    items: Tensor


def check_titles(id_map: IdMap) -> None:
    """Raises ``DataError`` when an item has no title, or no text: the teacher could not read it."""
    rows = zip(id_map.raw_ids, id_map.titles, id_map.texts, strict=True)
    missing = [raw for raw, title, text in rows if not title.strip() or not text.strip()]
    if missing:
        raise DataError.one(
            "item titles",
            f"{len(missing)} of {id_map.num_items} are missing (raw ids {', '.join(missing[:_SHOWN])})",
            "the teacher reads every item's title",
            "add the titles to the dataset's files, or choose dataset.untitled=id (raw id as title), or drop (logs)",
        )


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts in one call, without special tokens; a text cannot smuggle one in."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def encode_words(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """As `encode`, each text as it reads behind a blank.

    That is a blank in front, unless the tokenizer puts its own boundary there (as Llama-2's does): with both, every
    text would begin with an empty piece.
    """
    alone, twice = encode(tokenizer, ["a", "a a"])
    blank = "" if twice == [*alone, *alone] else " "
    return encode(tokenizer, [f"{blank}{text}" for text in texts])


def surrounding(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text (BOS; [CLS] and [SEP])."""
    plain, full = encode(tokenizer, ["a"])[0], list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start], full[start + len(plain) :]
    return [], []


class TruncatedTitles(NamedTuple):
    """What `prompt.title_tokens` does to a catalogue: how many titles are ``cut``, and how many of these read ``alike``
    another item's title only because of it.
    """

    cut: int
    alike: int

    @classmethod
    def of(cls, whole: Sequence[Sequence[int]], kept: Sequence[Sequence[int]]) -> TruncatedTitles:
        """Count what cutting did to titles, from their tokens before and after."""
        before: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
        for title, rest in zip(whole, kept, strict=True):
            before.setdefault(tuple(rest), set()).add(tuple(title))
        shortened = [tuple(rest) for title, rest in zip(whole, kept, strict=True) if len(rest) < len(title)]
        return cls(len(shortened), sum(len(before[rest]) > 1 for rest in shortened))


class TitlePieces(nn.Module):
    """The catalogue's titles as token pieces, each with a placeholder behind it: what prompts are put together from.

    Its tensors move with the model but are never saved.
    """

    pieces: Tensor
    sizes: Tensor
    fingerprint: str
    truncated: TruncatedTitles

    def __init__(self, id_map: IdMap, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
        """Tokenise every title, cut to ``settings.title_tokens``; the rows of `frame` follow with `hold`.

        ``unknown`` counts titles that hold nothing which the tokenizer knows. Raises ``DataError`` when a title is
        missing, ``ModelError`` when the tokenizer turns one into nothing, or knows none.
        """
        super().__init__()
        check_titles(id_map)
        self.settings, self.tokenizer, self.num_items = settings, tokenizer, id_map.num_items
        whole = encode_words(tokenizer, id_map.texts)
        titles = [ids[: settings.title_tokens] for ids in whole]
        self.truncated = TruncatedTitles.of(whole, titles)
        tokenizer.add_tokens([AddedToken(PLACEHOLDER, special=True)])
        self.placeholder_id = int(tokenizer.convert_tokens_to_ids(PLACEHOLDER))
        self.before, self.after = surrounding(tokenizer)
        self.unknown = sum(set(ids) == {tokenizer.unk_token_id} for ids in titles)
        self._require_titles(id_map, titles)
        self.title_ids = titles
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.pad_id = int(pad) if pad is not None else 0

    def require_rows(self, rows: int) -> Self:
        """Use nothing beside a table of token embeddings of so many ``rows``; placeholders are looked up nowhere.

        Padding takes any row where its own token has none: behind a mask nobody sees it. Raises ``ModelError`` when a
        title, or a word between titles, has a token without a row.
        """
        if self.pad_id >= rows:
            self.pad_id = 0
        beyond = sorted(self._spoken() - self._marks() - set(range(rows)))
        if beyond:
            shown = ", ".join(map(repr, self.tokenizer.convert_ids_to_tokens(beyond[:_SHOWN])))
            rule = f"its tokenizer knows {len(beyond)} tokens that its table of {rows} rows has no row for ({shown})"
            step = "call resize_token_embeddings(len(tokenizer)) and save it, or use the tokenizer that it came with"
            raise ModelError.one("teacher.llm", type(self.tokenizer).__name__, rule, step)
        return self

    def _spoken(self) -> set[int]:
        """Every token that may be looked up."""
        own = torch.arange(self.pieces.shape[1]) < self.sizes.unsqueeze(1).cpu()
        return {*self.pieces.cpu()[own].tolist(), *self.before, *self.after}

    def _marks(self) -> set[int]:
        """Tokens in whose place something else is read."""
        return {self.placeholder_id}

    def hold(self, frame: Sequence[Sequence[int]]) -> list[list[int]]:
        """Keep titles and frame as one table, which is returned: rows 0..V-1 items, V nothing (padding), then frame."""
        table = [*([*ids, self.placeholder_id] for ids in self.title_ids), [], *map(list, frame)]
        self.register_buffer("sizes", torch.tensor([len(ids) for ids in table]), persistent=False)
        self.register_buffer("pieces", rectangle(table), persistent=False)
        return table

    def _require_titles(self, id_map: IdMap, titles: Sequence[Sequence[int]]) -> None:
        lost = [text for text, ids in zip(id_map.texts, titles, strict=True) if not ids]
        if lost:
            raise ModelError.one(
                "teacher.llm",
                lost[:_SHOWN],
                f"its tokenizer turns {len(lost)} titles into nothing",
                "use another model",
            )
        if self.unknown == len(titles):
            shown = list(id_map.texts[:_SHOWN])
            raise ModelError.one("teacher.llm", shown, "its tokenizer knows no word of any title", "use another model")

    def titles(self, items: Tensor) -> PromptBatch:
        """Each item's title alone (no placeholder) with the tokenizer's special tokens, for items ``[B]``."""
        ids = self.pieces[items]
        sizes = self.sizes[items] - 1
        before, after = (torch.tensor(part, dtype=ids.dtype, device=ids.device) for part in (self.before, self.after))
        rows = len(items)
        tokens = torch.cat([before.expand(rows, -1), ids, after.expand(rows, -1)], dim=1)
        own = torch.arange(ids.shape[1], device=ids.device) < sizes.unsqueeze(1)
        always = torch.ones(rows, 1, dtype=torch.bool, device=ids.device)
        real = torch.cat([always.expand(-1, len(before)), own, always.expand(-1, len(after))], dim=1)
        return self._pack(tokens, real, torch.full_like(tokens, self.num_items))

    def _pack(self, tokens: Tensor, real: Tensor, items: Tensor) -> PromptBatch:
        """Real tokens to the front, see `pack`."""
        (token_ids, packed_items), mask = pack_tokens(real, [(tokens, self.pad_id), (items, self.num_items)])
        return PromptBatch(token_ids, mask, packed_items)


class Prompts(TitlePieces):
    """Prompts that ask for the item after a history."""

    def __init__(self, id_map: IdMap, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
        """Also raises ``ConfigError`` when not even one title fits into the prompt."""
        super().__init__(id_map, tokenizer, settings)
        (prefix,), (suffix,) = encode(tokenizer, [PREFIX]), encode_words(tokenizer, [SUFFIX.strip()])
        frame = [self.before + prefix, suffix + self.after]
        self._require_room(sum(map(len, frame)), 1 + max(map(len, self.title_ids)))
        # rows 0..V-1: items; V: nothing (padding); V+1: prefix; V+2: suffix
        table = self.hold(frame)
        self.fingerprint = fingerprint(settings, table, self.placeholder_id)

    def _require_room(self, frame: int, longest: int) -> None:
        if frame + longest > self.settings.max_tokens:
            raise ConfigError.one(
                "teacher.prompt.max_tokens",
                self.settings.max_tokens,
                f"a prompt with the longest title needs {frame + longest} tokens",
                "raise it, or lower teacher.prompt.title_tokens",
            )

    def choose(self, history: Tensor, length: Tensor) -> Tensor:
        """Row numbers of `pieces` for each prompt, ``[B, L + 2]``: prefix, titles in order, suffix."""
        place = torch.arange(history.shape[1], device=history.device)
        recent = place >= (length.unsqueeze(1) - self.settings.history_titles)
        sizes = self.sizes[history]
        room = self.settings.max_tokens - self.sizes[self.num_items + 1 :].sum()
        fits = sizes.flip(1).cumsum(1).flip(1) <= room
        titles = torch.where(recent & fits, history, self.num_items)
        frame = torch.full_like(length, self.num_items + 1).unsqueeze(1)
        return torch.cat([frame, titles, frame + 1], dim=1)

    def token_counts(self, history: Tensor, length: Tensor) -> Tensor:
        """``[B]`` int64: tokens of each prompt. B may be a whole dataset: its rows are laid out in parts."""
        parts = zip(history.split(COUNTED_AT_ONCE), length.split(COUNTED_AT_ONCE), strict=True)
        return torch.cat([self.sizes[self.choose(*part)].sum(dim=1) for part in parts])

    def forward(self, history: Tensor, length: Tensor) -> PromptBatch:
        """Prompts for histories ``[B, L]`` of lengths ``[B]``.

        Only the ``history_titles`` most recent titles enter, and of these the oldest give way until the prompt has
        at most ``max_tokens`` tokens.
        """
        return self.lay_out(self.choose(history, length))

    def lay_out(self, chosen: Tensor) -> PromptBatch:
        """The pieces with these row numbers ``[B, n]``, one after the other."""
        tokens = self.pieces[chosen]
        real = torch.arange(tokens.shape[2], device=tokens.device) < self.sizes[chosen].unsqueeze(2)
        items = torch.where(tokens == self.placeholder_id, chosen.unsqueeze(2), self.num_items)
        return self._pack(tokens.flatten(1), real.flatten(1), items.flatten(1))

    def render(self, history: Tensor, length: Tensor) -> list[str]:
        """The prompts as text, as the tokenizer reads its tokens back."""
        batch = self(history, length)
        real = [ids[mask.bool()].tolist() for ids, mask in zip(batch.token_ids, batch.attention_mask, strict=True)]
        return [str(self.tokenizer.decode(ids)) for ids in real]


def pack_tokens(real: Tensor, columns: Sequence[tuple[Tensor, int]], left: bool = False) -> tuple[list[Tensor], Tensor]:
    """Move the real places of each row together, in order, and cut off what is padding in every row.

    Args:
        real: ``[B, n]`` bool.
        columns: tensors ``[B, n]``, each with the value that pads it.
        left: whether padding stands on the left; else on the right.

    Returns:
        The columns as ``[B, S]``, and the mask ``[B, S]`` int64.
    """
    counts = real.sum(dim=1)
    width = int(counts.max())
    place = real.cumsum(dim=1) - 1
    if left:
        place = place + (width - counts).unsqueeze(1)
    rows, source = real.nonzero(as_tuple=True)
    packed = []
    for values, padding in columns:
        whole = torch.full((len(real), width), padding, dtype=values.dtype, device=values.device)
        whole[rows, place[rows, source]] = values[rows, source]
        packed.append(whole)
    mask = torch.arange(width, device=real.device) < counts.unsqueeze(1)
    return packed, (mask.flip(1) if left else mask).long()


def rectangle(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of different lengths as one tensor, filled with zeros on the right."""
    width = max(map(len, rows))
    return torch.tensor([list(row) + [0] * (width - len(row)) for row in rows])
