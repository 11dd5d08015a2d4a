"""The model card of an exported student: what it is, what was measured, how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from src.serving.graph_names import EXCLUDE_SEEN, HISTORY, ITEMS, LENGTH, SCORES, K
from src.serving.metrics_table import metrics_table

#: what a reader of the card may copy: it needs onnxruntime, numpy and pyarrow, and nothing of this project
EXAMPLE = f"""\
import numpy as np
import onnxruntime
import pyarrow.parquet as pq

items = pq.read_table("id_map.parquet").to_pydict()
history = [items["raw_id"].index(raw_id) for raw_id in {{history}}]  # oldest first
session = onnxruntime.InferenceSession("model.onnx")
asked = {{{{"{HISTORY}": np.array([history]), "{LENGTH}": np.array([len(history)])}}}}
asked |= {{{{"{K}": np.array([5]), "{EXCLUDE_SEEN}": np.array([True])}}}}
best, scores = session.run(["{ITEMS}", "{SCORES}"], asked)
for item, score in zip(best[0], scores[0]):
    print(items["raw_id"][item], items["title"][item], f"{{{{score:.3f}}}}", sep="\\t")"""


def model_card(config: Mapping[str, Any], comparison: Sequence[Mapping[str, str]], raw_ids: Sequence[str]) -> str:
    """The card as Markdown.

    Args:
        config: the export's `config.json`.
        comparison: rows of the result's `comparison.csv`; may be empty.
        raw_ids: two of the catalogue, for the example.
    """
    example = EXAMPLE.format(history=list(raw_ids[:2]))
    parts = [
        "---\n"
        "# The licence is the owner's decision: fill these fields in before you hand the model on.\n"
        "# license:\n# license_name:\n# license_link:\n"
        "library_name: onnx\ntags:\n- recommendation\n- sequential-recommendation\n- onnx\n---",
        f"# {config['name']}",
        f"A sequential recommender ({config['architecture']}) over a catalogue of {config['num_items']:,} items"
        f" ({config['dataset']}). It reads the last {config['history_length']} items of a history"
        f" and scores every item."
        f"{_prior(config)}",
        "## Measured",
        metrics_table(comparison) if comparison else "Nothing was compared in the run that this model comes from.",
        _notes(config),
        "## Use",
        f"```python\n{example}\n```",
        _inputs(config),
        "## Files",
        "| file | holds |\n|---|---|\n"
        "| `model.onnx` | the whole model, its prior and the choice of the best items included |\n"
        "| `model.safetensors` | its weights by PyTorch's names; a prior's begin with `prior.` |\n"
        "| `id_map.parquet` | index, raw id and title of every item |\n"
        "| `config.json` | architecture, settings, fingerprints, measured numbers |\n"
        "| `manifest.json` | SHA-256 of every file: a folder that was changed is refused by `recommend` and `serve` |",
        "## Not in here",
        "Intended use, limits and the licence of the training data are for the owner to fill in.",
    ]
    return "\n\n".join(parts) + "\n"


def _prior(config: Mapping[str, Any]) -> str:
    return f" A {config['prior']} model in closed form is part of its scores." if config["prior"] else ""


def _notes(config: Mapping[str, Any]) -> str:
    source = config["source"]
    told = [
        f"Every target is ranked among all items. From `{source['kind']}` of {source['finished']}, seed "
        f"{source['seed']}, revision {source['revision']}.",
        f"The graph's scores differ from PyTorch's by at most {config['largest_difference']:.1e} "
        f"on {config['rows_compared']} histories.",
    ]
    if (loss := config.get("quantisation")) is not None:
        told.append(
            f"Weights are 8-bit whole numbers: NDCG@{loss['k']} on {loss['examples']:,} validation examples is "
            f"{loss['int8']:.4f} instead of {loss['float32']:.4f} ({loss['change']:+.2%})."
        )
    return "\n\n".join(told)


def _inputs(config: Mapping[str, Any]) -> str:
    return (
        f"`{HISTORY}` holds item indices, oldest first, `[batch, places]` int64 of any width, padded on the right with "
        f"{config['num_items']}; `{LENGTH}` `[batch]` int64 says how many are real; `{K}` `[1]` int64 is at most "
        f"{config['num_items']}; `{EXCLUDE_SEEN}` `[1]` bool gives the items of the history the score −∞. "
        f"`{ITEMS}` and `{SCORES}` are `[batch, k]`, best first."
    )
