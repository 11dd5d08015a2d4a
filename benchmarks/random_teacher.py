"""Teachers of any size with random weights, over a made-up catalogue: what is measured when only the shape matters.

Titles are made up of words of unequal frequency, and some belong to a series: another title's beginning with another
ending. How soon titles part decides how long a search along their tree takes: most of these do at their second token.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.model_flops import SHAPES, LlamaShape
from src.core.hardware import resolve_device
from src.core.training import Objective
from src.data.candidates import draw_candidate_lists
from src.data.examples import Examples
from src.data.id_map import IdMap
from src.data.tensor_examples import TensorExamples
from src.student.architectures.sasrec import SASRec
from src.student.models import student_settings
from src.teacher.backbone.gated_lora import inject
from src.teacher.backbone.gates import build_gate
from src.teacher.backbone.llm import LanguageModel
from src.teacher.backbone.tiny_llm import train_tokenizer
from src.teacher.factory import build_teacher
from src.teacher.ilora_model import GatedTeacher, ILoRATeacher
from src.teacher.item_head.training import ItemObjective
from src.teacher.settings import (
    LoraSettings,
    PromptSettings,
    TeacherSettings,
    TeacherTrainSettings,
    TinySettings,
    TitleSettings,
)
from src.teacher.title_lm.curriculum import Curriculum
from src.teacher.title_lm.model import TitleTeacher
from src.teacher.title_lm.objective import TITLE_MONITOR
from src.teacher.title_lm.prompts import TitlePrompts
from src.teacher.title_lm.training import TitleObjective, row_tokens

WINDOW = 10
_WORDS = 200  # different words of the titles; each becomes one token
_FREQUENCY = np.arange(1, _WORDS + 1) ** -0.7
_SERIES = 0.05  # share of titles that begin as another one
_ENDING = 2  # words at most in which it then differs
_TOKENIZER = TinySettings(vocabulary=2000, context=4096)
_MAX_TOKENS = 3000
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Place:
    """Where and in which type the language model computes."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, options: argparse.Namespace) -> Place:
        """From ``--device``, ``--dtype`` and ``--threads``; fixes the seed."""
        if options.threads:
            torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        device = resolve_device(options.device)
        fallback = "bfloat16" if device.type == "cuda" else "float32"
        return cls(device, _DTYPES[options.dtype if options.dtype != "auto" else fallback])


def add_shape_arguments(parser: argparse.ArgumentParser, shape: str) -> None:
    """The model's size, the adapters', device and type; ``shape`` is the default."""
    parser.add_argument("--shape", choices=sorted(SHAPES), default=shape, help="a named shape, changed by what follows")
    parser.add_argument("--width", type=int, help="hidden size")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--heads", type=int, help="of queries, and as many of keys and values")
    parser.add_argument("--feed-forward", type=int, help="intermediate size")
    parser.add_argument("--rank", type=int, default=16, help="of all experts together")
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["auto", *_DTYPES], default="auto", help="auto: bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; 0: torch's own choice")


def shape_of(options: argparse.Namespace) -> LlamaShape:
    """The shape that the arguments name."""
    names = {"width": "width", "layers": "layers", "heads": "heads", "feed_forward": "feed_forward"}
    changes = {field: getattr(options, name) for field, name in names.items() if getattr(options, name) is not None}
    if "heads" in changes:
        changes["key_value_heads"] = changes["heads"]
    return replace(SHAPES[options.shape], **changes)


@contextmanager
def _made_at(place: Place) -> Iterator[None]:
    """New tensors are of the place's type and on its device, so that no copy of the weights is ever made."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(place.dtype)
    try:
        with place.device:
            yield
    finally:
        torch.set_default_dtype(before)


def config_of(shape: LlamaShape) -> LlamaConfig:
    """For transformers."""
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=_TOKENIZER.context,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attn_implementation="sdpa",
    )


def random_llama(shape: LlamaShape, place: Place) -> LlamaModel:
    """Frozen, in eval mode, without a language-model head."""
    with _made_at(place):
        model = LlamaModel(config_of(shape))
    return model.requires_grad_(False).eval()


def random_causal_llama(shape: LlamaShape, place: Place) -> LlamaForCausalLM:
    """With a head."""
    with _made_at(place):
        model = LlamaForCausalLM(config_of(shape))
    return model.requires_grad_(False).eval()


@dataclass(frozen=True)
class Catalogue:
    """Items with made-up titles of about ``words`` tokens each, uniformly spread by ± ``spread`` of that."""

    items: int
    words: int
    spread: float

    @property
    def longest(self) -> int:
        """Words of the longest title that may be drawn."""
        return max(1, round(self.words * (1 + self.spread)))

    def id_map(self) -> IdMap:
        """Always the same titles for the same three numbers."""
        draw, titles = np.random.default_rng(0), list[list[int]]()
        chances = _FREQUENCY / _FREQUENCY.sum()
        shortest = max(1, round(self.words * (1 - self.spread)))
        for size in draw.integers(shortest, self.longest + 1, size=self.items):
            begun: list[int] = []
            if titles and draw.random() < _SERIES:
                other = titles[draw.integers(len(titles))]
                begun, size = other[: max(1, len(other) - draw.integers(1, _ENDING + 1))], len(other)
            titles.append([*begun, *draw.choice(_WORDS, size=size - len(begun), p=chances).tolist()])
        texts = tuple(" ".join(map(_word, title)) for title in titles)
        return IdMap(tuple(str(item) for item in range(self.items)), texts)

    def examples(self, rows: int) -> Examples:
        """Full windows at random."""
        draw = np.random.default_rng(1)
        return Examples.of_rows(
            example_id=np.arange(rows, dtype=np.int64),
            user=np.arange(rows, dtype=np.int64),
            history=draw.integers(self.items, size=(rows, WINDOW)).astype(np.int64),
            length=np.full(rows, WINDOW, dtype=np.int64),
            target=draw.integers(self.items, size=rows).astype(np.int64),
            timestamp=np.arange(rows, dtype=np.float64),
        )


def _word(number: int) -> str:
    """Three letters."""
    return "".join(chr(ord("a") + digit) for digit in (number % 26, number // 26, number % 5))


def add_catalogue_arguments(parser: argparse.ArgumentParser) -> None:
    """The catalogue, by default of ML-100K's size with histories of about 110 tokens, and how a teacher reads it."""
    parser.add_argument("--items", type=int, default=1682)
    parser.add_argument("--title-tokens", type=int, default=9, help="mean tokens of a title")
    parser.add_argument("--spread", type=float, default=0.5, help="titles differ from the mean by at most this share")
    parser.add_argument("--candidates", type=int, default=20, help="titles listed in a title_lm prompt; 0: no list")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the adapters, in training")
    parser.add_argument(
        "--compute",
        choices=["float32", "base"],
        default=LoraSettings().compute,
        help="teacher.lora.compute: the type in which adapters are multiplied",
    )


def add_objective_argument(parser: argparse.ArgumentParser) -> None:
    """What the teacher is trained on."""
    text = "item_ce: an item head; title_lm: as published, candidates in the prompt and a title as the answer"
    parser.add_argument("--objective", choices=["item_ce", "title_lm"], default="item_ce", help=text)


def catalogue_of(options: argparse.Namespace) -> Catalogue:
    """From the command line."""
    return Catalogue(options.items, options.title_tokens, options.spread)


def _settings(options: argparse.Namespace, objective: Literal["item_ce", "title_lm"]) -> TeacherSettings:
    title, train = TitleSettings(), TeacherTrainSettings()
    if objective == "title_lm":
        title = TitleSettings(candidates=options.candidates or 2, show_candidates=options.candidates > 0)
        train = replace(train, loop=replace(train.loop, monitor=TITLE_MONITOR))
    return TeacherSettings(
        objective=objective,
        llm="random",
        lora=LoraSettings(rank=options.rank, experts=options.experts, dropout=options.dropout, compute=options.compute),
        prompt=PromptSettings(
            history_titles=WINDOW, title_tokens=catalogue_of(options).longest, max_tokens=_MAX_TOKENS
        ),
        title=title,
        train=train,
    )


def _language(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, shape: LlamaShape) -> LanguageModel:
    if len(tokenizer) + 3 > shape.vocabulary:
        raise SystemExit(f"{len(tokenizer)} tokens and the placeholders do not fit a vocabulary of {shape.vocabulary}")
    return LanguageModel(
        model=model, tokenizer=tokenizer, is_decoder=True, hidden_size=shape.width, name="random", fingerprint="random"
    )


def item_teacher(options: argparse.Namespace, place: Place) -> ILoRATeacher:
    """The project's `item_ce` teacher around `random_llama`."""
    shape, id_map, settings = shape_of(options), catalogue_of(options).id_map(), _settings(options, "item_ce")
    encoder = SASRec(student_settings("sasrec"), id_map.num_items, WINDOW)
    language = _language(random_llama(shape, place), train_tokenizer(id_map, _TOKENIZER), shape)
    return build_teacher(settings, id_map, encoder, language, place.device)


def title_teacher(options: argparse.Namespace, place: Place) -> TitleTeacher:
    """The project's `title_lm` teacher around `random_causal_llama`, in eval mode."""
    shape, id_map, settings = shape_of(options), catalogue_of(options).id_map(), _settings(options, "title_lm")
    encoder = SASRec(student_settings("sasrec"), id_map.num_items, WINDOW)
    tokenizer = train_tokenizer(id_map, _TOKENIZER)
    language = _language(random_causal_llama(shape, place), tokenizer, shape)
    with torch.no_grad():
        # so that free answers are made of tokens that mean something
        language.model.get_output_embeddings().weight[len(tokenizer) :] = 0
    # what `build_teacher` does once the head has been read from a folder; here there is none
    prompts = TitlePrompts(id_map, language.tokenizer, settings.prompt, settings.title, _TOKENIZER.context)
    adapters = inject(language.model, settings.lora)
    gate = build_gate(settings.gate, encoder.representation, settings.lora.experts)
    return TitleTeacher(settings, language, adapters, encoder, gate, prompts).to(place.device).eval()


@dataclass(frozen=True, eq=False)
class Lesson:
    """A teacher, what it minimises over some training rows, and the tokens of each of these rows, ``[N]`` int64."""

    teacher: GatedTeacher
    objective: Objective
    costs: Tensor


def lesson(options: argparse.Namespace, place: Place, rows: int) -> Lesson:
    """Of ``--objective``, over so many made-up rows; every step of `title_lm` is hybrid, as a run's last ones are."""
    examples = catalogue_of(options).examples(rows)
    if options.objective == "item_ce":
        ranker = item_teacher(options, place)
        shown = TensorExamples.of(examples, ranker.device)
        return Lesson(ranker, ItemObjective(ranker, shown), ranker.cost(shown.history, shown.length))
    writer = title_teacher(options, place)
    shown = TensorExamples.of(examples, writer.device)
    lists = draw_candidate_lists(examples, writer.num_items, writer.settings.title.candidates, seed=0)
    candidates = torch.from_numpy(lists.of(examples)).to(writer.device)
    always = Curriculum.of("none", steps=1, steps_per_epoch=1, seed=0)
    objective = TitleObjective.of(writer, shown, candidates, always)
    return Lesson(writer, objective, row_tokens(writer.prompts, shown, candidates))
