"""The published prompts' tokenizer, from its SentencePiece file alone: a BPE with byte fallback.

Reads the file's protobuf by hand (field 1: pieces; in a piece 1 text, 2 score, 3 kind), so that no SentencePiece is
needed. As the pinned slow tokenizer does, every text gets a word boundary in front and loses spaces at its ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

_CONTROL = 3
_BOUNDARY = "▁"


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(content, at)
        elif kind == 2:
            size, at = _varint(content, at)
            value, at = content[at : at + size], at + size
        else:
            width = 4 if kind == 5 else 8
            value, at = content[at : at + width], at + width
        yield tag >> 3, value


def read_pieces(path: Path) -> list[tuple[str, float, int]]:
    """Text, score and kind (1: normal) of every piece, by token id."""
    pieces = []
    for number, content in _fields(path.read_bytes()):
        if number == 1:
            piece = dict(_fields(content))
            pieces.append((piece[1].decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0], piece.get(3, 1)))
    return pieces


def load_tokenizer(path: Path, bos: str, eos: str, unknown: str) -> PreTrainedTokenizerFast:
    """A tokenizer that begins texts with ``bos``."""
    pieces = read_pieces(path)
    ids = {text: number for number, (text, _, _) in enumerate(pieces)}
    ranked = sorted(range(len(pieces)), key=lambda number: -pieces[number][1])
    merges = [
        (text[:cut], text[cut:])
        for text in (pieces[number][0] for number in ranked if pieces[number][2] == 1)
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex("^ +| +$"), ""),
            normalizers.Prepend(_BOUNDARY),
            normalizers.Replace(" ", _BOUNDARY),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_BOUNDARY, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text, _, kind in pieces if kind == _CONTROL])
    tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, ids[bos])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token=unknown)
