"""Teachers of any size with random weights, over a made-up catalogue: what is measured when only the shape matters."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.model_flops import SHAPES, LlamaShape
from src.core.hardware import resolve_device
from src.data.examples import Examples
from src.data.id_map import IdMap
from src.student.models import SASRec
from src.student.settings import StudentSettings
from src.teacher.factory import build_teacher
from src.teacher.gated_lora import inject
from src.teacher.gates import build_gate
from src.teacher.ilora_model import ILoRATeacher
from src.teacher.llm import LanguageModel
from src.teacher.settings import LoraSettings, PromptSettings, TeacherSettings, TinySettings, TitleSettings
from src.teacher.tiny_llm import train_tokenizer
from src.teacher.title.model import TitleTeacher
from src.teacher.title.prompts import TitlePrompts

WINDOW = 10
_WORDS = 200  # different words of the titles; each becomes one token
_TOKENIZER = TinySettings(vocabulary=2000, context=4096)
_PROMPT = PromptSettings(history_titles=WINDOW, title_tokens=128, max_tokens=3000)
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

    def id_map(self) -> IdMap:
        """Always the same titles for the same three numbers."""
        draw = np.random.default_rng(0)
        low, high = round(self.words * (1 - self.spread)), round(self.words * (1 + self.spread))
        counts = draw.integers(max(1, low), max(1, high) + 1, size=self.items)
        titles = tuple(" ".join(_word(word) for word in draw.integers(_WORDS, size=count)) for count in counts)
        return IdMap(tuple(str(item) for item in range(self.items)), titles)

    def examples(self, rows: int) -> Examples:
        """Full windows at random."""
        draw = np.random.default_rng(1)
        return Examples(
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
    """The catalogue; by default ML-100K's size, and prompts of about 110 tokens."""
    parser.add_argument("--items", type=int, default=1682)
    parser.add_argument("--title-tokens", type=int, default=9, help="mean tokens of a title")
    parser.add_argument("--spread", type=float, default=0.5, help="titles differ from the mean by at most this share")
    parser.add_argument(
        "--adapters",
        choices=["float32", "base"],
        default="float32",
        help="what adapters compute in: float32 as PEFT does, or the base's type (autocast; their weights stay)",
    )


def catalogue_of(options: argparse.Namespace) -> Catalogue:
    """From the command line."""
    return Catalogue(options.items, options.title_tokens, options.spread)


def adapters_in_base_type(llm: PeftModel, place: Place) -> None:
    """Adapters compute in the base's type and are stored in float32: no activation is copied to float32 for them."""
    if place.dtype == torch.float32:
        return
    for module in llm.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False
    opened: list[torch.autocast] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        opened.append(torch.autocast(place.device.type, dtype=place.dtype))
        opened[-1].__enter__()

    def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
        opened.pop().__exit__(None, None, None)

    model = llm.get_base_model()
    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)


def _settings(options: argparse.Namespace) -> TeacherSettings:
    return TeacherSettings(
        llm="random",
        lora=LoraSettings(rank=options.rank, experts=options.experts),
        prompt=_PROMPT,
        title=TitleSettings(show_candidates=False),
    )


def _language(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, shape: LlamaShape) -> LanguageModel:
    if len(tokenizer) + 3 > shape.vocabulary:
        raise SystemExit(f"{len(tokenizer)} tokens and the placeholders do not fit a vocabulary of {shape.vocabulary}")
    return LanguageModel(
        model=model, tokenizer=tokenizer, is_decoder=True, hidden_size=shape.width, name="random", fingerprint="random"
    )


def item_teacher(options: argparse.Namespace, place: Place) -> ILoRATeacher:
    """The project's `item_ce` teacher around `random_llama`."""
    shape, id_map, settings = shape_of(options), catalogue_of(options).id_map(), _settings(options)
    encoder = SASRec(StudentSettings(), id_map.num_items, WINDOW)
    language = _language(random_llama(shape, place), train_tokenizer(id_map, _TOKENIZER), shape)
    teacher = build_teacher(settings, id_map, encoder, language, place.device)
    if options.adapters == "base":
        adapters_in_base_type(teacher.llm, place)
    return teacher


def title_teacher(options: argparse.Namespace, place: Place) -> TitleTeacher:
    """The project's `title_lm` teacher around `random_causal_llama`; its prompts hold histories alone."""
    shape, id_map, settings = shape_of(options), catalogue_of(options).id_map(), _settings(options)
    encoder = SASRec(StudentSettings(), id_map.num_items, WINDOW)
    tokenizer = train_tokenizer(id_map, _TOKENIZER)
    language = _language(random_causal_llama(shape, place), tokenizer, shape)
    with torch.no_grad():
        # so that free answers are made of tokens that mean something
        language.model.get_output_embeddings().weight[len(tokenizer) :] = 0
    # what `build_title_teacher` does once the head has been read from a folder; here there is none
    prompts = TitlePrompts(id_map, language.tokenizer, settings.prompt, settings.title, _TOKENIZER.context)
    adapters = inject(language.model, settings.lora)
    gate = build_gate(settings.gate, encoder.representation, settings.lora.experts)
    if options.adapters == "base":
        adapters_in_base_type(adapters.model, place)
    return TitleTeacher(settings, language, adapters, encoder, gate, prompts).to(place.device).eval()
