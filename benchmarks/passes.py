"""What goes through a causal model while it is asked, pass by pass: kind, size and time, without waiting for a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

Kind = Literal["prompt", "decoding", "text"]


@dataclass
class Pass:
    """A forward pass. *prompt*: the head follows, nothing is cached yet; *decoding*: it goes on from a cache; *text*:
    the model without its head, as titles and free answers are embedded.

    ``places``: rows by tokens; ``cached``: places of the key-value cache that its rows read, their own new ones among
    them, padding too (it is read all the same); ``mask``: of a text, which of its places are real.
    """

    kind: Kind
    places: int
    cached: int
    mask: Tensor | None
    start: Any
    end: Any = None

    @property
    def seconds(self) -> float:
        """On a GPU the time between two events of its stream, which must have been waited for."""
        if isinstance(self.start, torch.cuda.Event):
            return float(self.start.elapsed_time(self.end)) / 1000
        return float(self.end - self.start)


@dataclass
class Watch:
    """The passes of a causal language model, in order."""

    model: PreTrainedModel
    seen: list[Pass] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """For the block."""
        body = self.model.base_model
        with ExitStack() as stack:
            for module, begin in ((self.model, self._whole), (body, self._body)):
                stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
            stack.callback(self.model.register_forward_hook(self._whole_ends).remove)
            stack.callback(body.register_forward_hook(self._body_ends).remove)
            yield

    def of(self, kind: Kind) -> list[Pass]:
        """The passes of a kind."""
        return [one for one in self.seen if one.kind == kind]

    def _now(self) -> Any:
        if self.model.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _whole(self, module: Any, inputs: Any, named: dict[str, Any]) -> None:
        rows, tokens = _shape(named)
        cache = named.get("past_key_values")
        before = 0 if cache is None else int(cache.get_seq_length())
        kind: Kind = "decoding" if before else "prompt"
        cached = rows * (before + tokens) if before else 0
        self.seen.append(Pass(kind, rows * tokens, cached, None, self._now()))

    def _whole_ends(self, module: Any, inputs: Any, output: Any) -> None:
        self.seen[-1].end = self._now()

    def _body(self, module: Any, inputs: Any, named: dict[str, Any]) -> None:
        # within a pass of the whole model that pass is counted already
        if not self.seen or self.seen[-1].end is not None:
            rows, tokens = _shape(named)
            mask = named.get("attention_mask")
            if mask is None:  # a decoder's padding, on the right, needs none: all places count as text
                mask = torch.ones(rows, tokens, dtype=torch.int64)
            self.seen.append(Pass("text", rows * tokens, 0, mask, self._now()))

    def _body_ends(self, module: Any, inputs: Any, output: Any) -> None:
        if self.seen[-1].kind == "text":
            self.seen[-1].end = self._now()


def _shape(named: dict[str, Any]) -> tuple[int, int]:
    """Rows and tokens of what a model is called with."""
    given = named.get("input_ids")
    if given is None:
        given = named["inputs_embeds"]
    return int(given.shape[0]), int(given.shape[1])
