"""`seqrec` and `ilora_rec`: the students and the teacher's frozen encoder against the published networks."""

from __future__ import annotations

from pathlib import Path

import torch

from src.distill.parts import TaughtStudent
from tests.golden.reference_names import copy_of, item_input_from, settings_of, student_from
from tests.golden.sources import FLOAT32, FLOAT64, PRECISIONS, Arrays, Sources, require

_TOLERANCE = {"f64": FLOAT64, "f32": FLOAT32}


def _sizes_agree(io: Arrays, state: dict[str, torch.Tensor], history_length: int) -> None:
    """The case's hyper-parameters say what its parameters say."""
    padding, width = state["item_embeddings.weight"].shape
    require(io.whole("hp.item_num") == padding - 1 == len(state["s_fc.bias"]), "hp.item_num")
    require(io.whole("hp.hidden") == width, "hp.hidden")
    require(io.whole("hp.state_size") == history_length, "hp.state_size")


@torch.no_grad()
def check_seqrec(sources: Sources, io_file: Path, weights_file: Path) -> None:
    """Logits without and with the teacher's item embeddings; and after folding them into the item table."""
    io, weights = sources.arrays(io_file), sources.arrays(weights_file)
    states, length, table = io["in.states"], io["in.len_states"], io["in.llm_all_emb"]
    heads = int(io.get("hp.num_heads") or 1)
    for prefix, dtype in PRECISIONS.items():
        state = weights.state(dtype)
        settings = settings_of(state, heads)
        _sizes_agree(io, state, states.shape[1])
        if settings.architecture == "caser":
            require(settings.filter_sizes == tuple(io["hp.filter_sizes"].tolist()), "hp.filter_sizes")
            require(settings.num_filters == io.whole("hp.num_filters"), "hp.num_filters")
        require(io.whole("hp.llm_dim") == table.shape[1], "hp.llm_dim")
        student = student_from(state, settings, states.shape[1])
        item_input = item_input_from(state, table, io.number("hp.ed_weight"))
        io.expect("in.llm_emb", item_input.table.float()[states], 0.0)
        folded = copy_of(student, settings)
        TaughtStudent(folded, {"item_input": item_input}).fold()
        results = {
            "logits": [student(states, length)],
            "logits_llm": [student(states, length, item_input.extra(states)), folded(states, length)],
        }
        for name, variants in results.items():
            for logits in variants:
                # the published SASRec drops the batch axis of a single row; ours keeps it
                bare = len(states) == 1 and io[f"{prefix}.{name}"].dim() == 1
                io.expect(f"{prefix}.{name}", logits[0] if bare else logits, _TOLERANCE[prefix])


@torch.no_grad()
def check_ilora_rec(sources: Sources, io_file: Path, weights_file: Path) -> None:
    """User vector, item vectors and logits of the frozen SASRec."""
    io, weights = sources.arrays(io_file), sources.arrays(weights_file)
    states, length, items = io["in.states"], io["in.len_states"], io["in.item_ids"]
    for prefix, dtype in PRECISIONS.items():
        state, tolerance = weights.state(dtype), _TOLERANCE[prefix]
        _sizes_agree(io, state, states.shape[1])
        student = student_from(state, settings_of(state, io.whole("hp.num_heads")), states.shape[1])
        io.expect(f"{prefix}.user_vector", student.encode(states, length).unsqueeze(1), tolerance)
        io.expect(f"{prefix}.user_vector_batch1", student.encode(states[:1], length[:1]).unsqueeze(1), tolerance)
        io.expect(f"{prefix}.item_vector", student.item_embeddings(items), tolerance)
        io.expect(f"{prefix}.logits", student(states, length), tolerance)
