"""The language model's embedding of every item, without a teacher: nothing is trained, no row is labelled."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from src.core.errors import ConfigError
from src.core.memory import in_parts
from src.data.id_map import IdMap
from src.data.item_text import TextSource
from src.teacher.backbone.llm import load_llm
from src.teacher.backbone.model_fingerprint import fingerprint_llm
from src.teacher.ilora_model import mean_state
from src.teacher.labelling.labels import BATCH_SIZE_KEY, OUT_OF_MEMORY_ADVICE
from src.teacher.prompts import TitlePieces
from src.teacher.settings import TeacherSettings


@torch.no_grad()
def embed_titles(settings: TeacherSettings, llm_folder: str, id_map: IdMap, device: torch.device) -> Tensor:
    """The mean state of each title's tokens in the last layer, as a teacher's item embeddings are.

    Args:
        settings: how the model is read, how long a title may be, and how many are read at once.
        llm_folder: folder or hub id of the language model.
        id_map: the titles.
        device: where it computes.

    Returns:
        ``[V, D]`` float32 on the device.

    Raises:
        ModelError: the model cannot be read or run.
        OutOfMemory: not even one title fits.
    """
    language = load_llm(llm_folder, settings.dtype, device, settings.quantise)
    table = language.model.get_input_embeddings()
    pieces = TitlePieces(id_map, language.tokenizer, settings.prompt)
    pieces.hold([])
    pieces = pieces.require_rows(len(table.weight)).to(device)
    rows = torch.empty(id_map.num_items, language.hidden_size, device=device)

    def embed(items: Tensor) -> None:
        batch = pieces.titles(items)
        mask = None if language.is_decoder else batch.attention_mask
        states: Tensor = language.model(inputs_embeds=table(batch.token_ids), attention_mask=mask).last_hidden_state
        rows[items] = mean_state(states, batch.attention_mask)

    order = pieces.sizes[: id_map.num_items].argsort(stable=True)
    in_parts(order, settings.export.batch_size, embed, BATCH_SIZE_KEY, OUT_OF_MEMORY_ADVICE)
    return rows


def embed_as(source: TextSource, encoder: str, id_map: IdMap) -> Tensor:
    """Embeddings of new items' texts, by the model and in the way of those that a student was trained with.

    Args:
        source: which model, and how it read.
        encoder: where that model lies now; empty: where it lay then.
        id_map: the new items.

    Returns:
        ``[n, D]`` float32 on the CPU.

    Raises:
        ConfigError: another model lies there.
        ModelError: none does.
    """
    name = encoder or source.llm
    if fingerprint_llm(name) != source.fingerprint:
        rule, step = "is another language model than the student was trained with", f"encoder=FOLDER of {source.llm}"
        raise ConfigError.one("encoder", name, rule, step)
    settings = TeacherSettings(llm=name)
    prompt = replace(settings.prompt, title_tokens=source.title_tokens)
    settings = replace(settings, dtype=source.dtype, prompt=prompt)  # type: ignore[arg-type]  # as it was checked then
    return embed_titles(settings, name, id_map, torch.device("cpu"))
