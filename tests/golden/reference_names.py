"""The published students' `state_dict` names, and ours. The only place that knows both."""

from __future__ import annotations

from torch import Tensor

from src.distill.terms.item_embeddings import TeacherItemInput
from src.student.base import SequenceStudent
from src.student.models import build_student
from src.student.settings import StudentSettings
from tests.fixtures import student_of

State = dict[str, Tensor]

_RENAMED = {
    "positional_embeddings.": "positions.",
    "s_fc.": "scorer.",
    "ln_1.": "norm_query.",
    "ln_2.": "norm_hidden.",
    "feed_forward.layer_norm.": "norm_inner.",
    "ln_3.": "norm_out.",
    "mh_attn.linear_q.": "attention.query.",
    "mh_attn.linear_k.": "attention.key.",
    "mh_attn.linear_v.": "attention.value.",
    "feed_forward.w_1.": "inner.",
    "feed_forward.w_2.": "outer.",
    "horizontal_cnn.": "horizontal.",
    "vertical_cnn.": "vertical.",
}
#: the reference's projection of the teacher's item embeddings; its name tells the published widths, not these
PROJECTION = "fc_4096_64."


def our_name(reference: str) -> str:
    """Our name of a reference parameter of the student itself."""
    for theirs, ours in _RENAMED.items():
        if reference.startswith(theirs):
            return ours + reference.removeprefix(theirs)
    return reference


def our_shape(reference: str, value: Tensor) -> Tensor:
    """A reference parameter in our layout: convolutions of width one or full width become plain layers."""
    if reference.startswith("feed_forward.w_") and value.dim() == 3:
        return value.squeeze(2)  # kernel 1 [out, in, 1] is a linear layer
    if reference.startswith("horizontal_cnn.") and value.dim() == 4:
        return value.squeeze(1).transpose(1, 2)  # [F, 1, s, H] over the full width is a Conv1d [F, H, s]
    if reference.startswith("vertical_cnn.") and value.dim() == 4:
        return value.reshape(1, -1)  # [1, 1, S, 1] is a linear layer over the places
    return value


def our_state(reference: State) -> State:
    """The student's own parameters (the projection is left out)."""
    own = {name: value for name, value in reference.items() if not name.startswith(PROJECTION)}
    return {our_name(name): our_shape(name, value) for name, value in own.items()}


def settings_of(reference: State, heads: int) -> StudentSettings:
    """Architecture and sizes, read from the parameters."""
    width = reference["item_embeddings.weight"].shape[1]
    if "gru.weight_ih_l0" in reference:
        return student_of(architecture="gru4rec", width=width)
    if "vertical_cnn.weight" in reference:
        filters = [reference[f"horizontal_cnn.{place}.weight"] for place in range(_count(reference, "horizontal_cnn."))]
        sizes = tuple(weight.shape[2] for weight in filters)
        return student_of(architecture="caser", width=width, filter_sizes=sizes, num_filters=len(filters[0]))
    return student_of(architecture="sasrec", width=width, heads=heads)


def _count(reference: State, prefix: str) -> int:
    return sum(name.startswith(prefix) and name.endswith(".weight") for name in reference)


def student_from(reference: State, settings: StudentSettings, history_length: int) -> SequenceStudent:
    """Our student with the reference's parameters, in their precision, in eval mode."""
    dtype = reference["item_embeddings.weight"].dtype
    student = build_student(settings, len(reference["s_fc.bias"]), history_length).to(dtype)
    student.load_state_dict(our_state(reference))  # strict: every parameter on either side has its partner
    return student.eval()


def item_input_from(reference: State, table: Tensor, weight: float) -> TeacherItemInput:
    """Our teacher-item input with the reference's projection, in its precision."""
    projection = {part: reference[PROJECTION + part] for part in ("weight", "bias")}
    dtype, width = projection["weight"].dtype, len(projection["bias"])
    item_input = TeacherItemInput(table.to(dtype), len(reference["s_fc.bias"]), width, weight).to(dtype)
    item_input.projection.load_state_dict(projection)
    return item_input


def copy_of(student: SequenceStudent, settings: StudentSettings) -> SequenceStudent:
    """Another student with the same parameters."""
    twin = build_student(settings, student.num_items, student.history_length).to(student.scorer.bias.dtype)
    twin.load_state_dict(student.state_dict())
    return twin.eval()
