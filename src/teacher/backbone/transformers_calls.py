"""How transformers is called: without its own reports, and with its errors turned into ones that teach."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging as transformers_logging

from src.core.errors import AnyoError, ModelError, OutOfMemory, first_line
from src.core.memory import is_out_of_memory, torch_reason

#: what is wrong with a language model is said of this setting
FIELD = "teacher.llm"
#: how torch begins its refusal of a pickle that is more than numbers
_PICKLED = "Weights only load failed"


def hide_progress() -> None:
    """No bars of transformers on the terminal: ours say enough."""
    transformers_logging.disable_progress_bar()


@contextmanager
def heads_are_expected() -> Iterator[None]:
    """No report of transformers on the terminal about weights that were left aside: a teacher needs no head.

    What is missing or of another size is still reported.
    """

    def is_worth_reading(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return "LOAD REPORT" not in said or any(word in said for word in ("MISSING", "MISMATCH", "CONVERSION"))

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_worth_reading)
    try:
        yield
    finally:
        logger.removeFilter(is_worth_reading)


@contextmanager
def quietly() -> Iterator[None]:
    """The block runs without transformers' own report on what it reads."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def is_local(name_or_path: str) -> bool:
    """Whether a name means a folder: one that exists, or one written as a path."""
    return Path(name_or_path).is_dir() or name_or_path.startswith((".", "/", "~"))


@contextmanager
def explained(name: str, what: str) -> Iterator[None]:
    """Turn what transformers raises for a missing or damaged model into one kind of error that teaches."""
    try:
        yield
    except AnyoError:
        raise
    # whatever a library meets in files that others wrote: no list of its errors would be whole
    except Exception as error:
        if is_out_of_memory(error):
            # nothing that another id or the network could help
            raise too_large(name, error) from error
        first = first_line(error)
        if _PICKLED in first:  # torch advises to run what the file holds
            rule = f"its {what} hold code beside numbers, which is not run, or are damaged"
            raise ModelError.one(FIELD, name, rule, "get the model as safetensors") from None
        if is_local(name):
            step = "name a folder with config.json, tokenizer and weights (save_pretrained writes one)"
        else:
            step = "check the hub id, the network and, for a gated model, HF_TOKEN; or name a local folder"
        raise ModelError.one(FIELD, name, f"its {what} cannot be read ({first})", step) from error


def too_large(name: str, error: BaseException) -> OutOfMemory:
    """Make the error for a model that does not fit on the device."""
    advice = "set teacher.quantise=4bit, take a smaller model, or free the device"
    return OutOfMemory(f"{FIELD} = {name!r}: it does not fit on the device ({torch_reason(error)}) → {advice}")


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Turn whatever a model's own layers raise into an error that names the model."""
    try:
        yield
    except AnyoError:
        raise
    # the code of some hundred families: no list of its errors would be whole
    except Exception as error:
        if is_out_of_memory(error):
            raise too_large(name, error) from error
        rule = f"a pass through its layers fails ({type(error).__name__}: {first_line(error)})"
        raise ModelError.one(FIELD, name, rule, "choose a model of another family") from error
