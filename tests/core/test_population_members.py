"""Fits that train together: where they cannot, where they came from, and what they must not share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.core.differences import Differences, NotBatchable
from src.core.errors import TrainingFailed
from src.core.member_draws import MemberDraws
from src.core.population import Member, Population
from src.core.training import FitResult, Fitting, LoopSettings


class Line(nn.Module):
    """Learns the mean of noisy numbers; may look at its own loss, which no batch can."""

    def __init__(self, weight: float = 1.0, looks: bool = False, wrong: bool = False) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(3))
        self.unused = nn.Parameter(torch.ones(2))
        self.weight, self.looks, self.wrong = weight, looks, wrong

    def loss(self, rows: Tensor) -> Tensor:
        """Mean over rows."""
        left = F.dropout(self.place.expand(len(rows), 3), 0.5, self.training)
        loss = self.weight * (left - rows.to(left.dtype).unsqueeze(1)).square().mean()
        if self.looks and loss < 0:
            raise AssertionError
        if self.wrong:
            loss = loss * torch.where(self.place.sum() > 0.1, float("nan"), 1.0)
        return loss


class Kept:
    """A checkpoint in memory."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.state = state

    def load(self) -> Mapping[str, Any] | None:
        """The last one."""
        return self.state

    def save(self, state: Mapping[str, Any]) -> None:
        """Copied, as a file would be."""
        from src.core.checkpoints import pack, unpack

        self.state = unpack(pack(state, "me"), "me", "memory")


class Held(Line):
    """Keeps numbers of its own that are no weights; what it learns begins where the loss does not tell of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        pattern = torch.rand(1 if kind == "number" else 3) + 0.5
        self.kind = kind
        if kind == "frozen":
            self.pattern = nn.Parameter(pattern, requires_grad=False)
        elif kind == "settings":
            self.settings = SimpleNamespace(pattern=pattern)
        elif kind == "function":
            self.function = lambda value: value * pattern
        else:
            self.plain = pattern.squeeze()

    def loss(self, rows: Tensor) -> Tensor:
        """As `Line`, of a place that is stretched."""
        if self.kind == "function":
            stretched = self.function(self.place)
        else:
            held = {"frozen": lambda: self.pattern, "settings": lambda: self.settings.pattern}
            stretched = self.place * held.get(self.kind, lambda: self.plain)()
        left = F.dropout(stretched.expand(len(rows), 3), 0.5, self.training)
        return (left - rows.to(left.dtype).unsqueeze(1)).square().mean()


class Sometimes(Line):
    """A weight has a part in the loss of full batches alone, and one in that of the others."""

    def loss(self, rows: Tensor) -> Tensor:
        """As `Line`, and more."""
        own = self.unused[0].square() if len(rows) == 2 else self.other.square()
        return super().loss(rows) + own

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Parameter(torch.ones(()))


def fit_of(
    seed: int, epochs: int = 4, checkpoint: Kept | None = None, made: Callable[..., Line] = Line, count: int = 6,
    **line: Any,
) -> Fitting:  # fmt: skip
    """Six rows in batches of two; weights decay, so that an unused one that were moved would be seen."""
    torch.manual_seed(seed)
    module = made(**line)
    optimiser = torch.optim.Adam(module.parameters(), 0.05 * (seed + 1), weight_decay=0.1)
    loop = LoopSettings(epochs=epochs, batch_size=2, patience=99, ema=0.5)
    order = torch.Generator().manual_seed(seed)
    return Fitting(
        module, module, optimiser, loop, count, lambda: {"ndcg_20": float(module.place.sum())}, order,
        checkpoint=checkpoint or Kept(),
    )  # fmt: skip


def together(fits: Iterable[Fitting]) -> tuple[Population, list[Member]]:
    """To the end; a fit's stream begins where torch's is when it is made, so that fits are made one by one."""
    population, members = Population(), [Member(fit) for fit in fits]
    for member in members:
        member.advance()
    while any(member.rows is not None for member in members):
        population.epoch(members)
    return population, members


def alone(fit: Fitting) -> FitResult:
    return fit.alone()


def test_members_that_cannot_be_batched_train_in_turns_to_the_same_bits(caplog: pytest.LogCaptureFixture) -> None:
    expected = []
    for seed in range(3):
        expected.append(alone(fit_of(seed, looks=True)).history)
    with caplog.at_level(logging.WARNING):
        population, members = together(fit_of(seed, looks=True) for seed in range(3))
    assert "3 trainings run in turns, not as one" in caplog.text
    assert population.in_turns
    assert [member.result.history for member in members if member.result] == expected


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("frozen", "what they keep differs: pattern"),
        ("settings", "Held.settings.pattern holds other numbers"),
        ("number", "Held.plain holds other numbers"),
        ("plain", "the batched gradient of module.place is another one"),
        ("function", ""),  # each member's own one is called
    ],
)
def test_what_a_member_holds_is_never_taken_for_anothers(kind: str, said: str) -> None:
    """The first losses are the same whatever is held, since what is learned begins at 0."""
    torch.set_default_dtype(torch.float64)
    try:
        expected = []
        for seed in range(2):
            expected.append(alone(fit_of(seed, made=Held, kind=kind)).history)
        population, members = together(fit_of(seed, made=Held, kind=kind) for seed in range(2))
    finally:
        torch.set_default_dtype(torch.float32)
    assert population.in_turns == said
    for member, history in zip(members, expected, strict=True):
        assert member.result is not None
        for found, wanted in zip(member.result.history, history, strict=True):
            assert found == pytest.approx(wanted, abs=1e-12)


def test_a_weight_without_a_gradient_rests_and_each_counts_its_own_steps() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        expected = []
        for seed in range(2):
            fit = fit_of(seed, made=Sometimes, count=5)  # batches of two, two and one
            expected.append((alone(fit), [value.clone() for value in fit.module.parameters()]))
        population, members = together(fit_of(seed, made=Sometimes, count=5) for seed in range(2))
    finally:
        torch.set_default_dtype(torch.float32)
    assert not population.in_turns
    for member, (_, weights) in zip(members, expected, strict=True):
        for found, wanted in zip(member.fit.module.parameters(), weights, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        counts = [float(state["step"]) for state in member.fit.optimiser.state.values()]
        assert sorted(counts) == [4, 8, 12]  # of four epochs with three steps


@pytest.mark.parametrize(
    "asked",
    [{}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": torch.tensor([[True, False], [True, True]])}],
    ids=["plain", "causal", "scaled", "mask"],
)
def test_attention_is_that_of_torch(asked: dict[str, Any]) -> None:
    query, key, value = torch.randn(3, 4, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = MemberDraws(torch.tensor(0), [torch.Generator()], {})
    found = draws._attention(query, key, value, **asked)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(query, key, value, **asked))


def test_members_may_come_from_a_lone_training_and_go_on_alone() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        whole = alone(fit_of(1, epochs=6))
        # two epochs alone, two among others, two alone
        first, second = Kept(), Kept()
        alone(fit_of(1, epochs=2, checkpoint=first))
        second.state = first.state
        population, _ = together(fit_of(seed, 4, kept) for seed, kept in ((0, Kept()), (1, second), (2, Kept())))
        assert not population.in_turns
        rest = alone(fit_of(1, 6, Kept(second.state)))
    finally:
        torch.set_default_dtype(torch.float32)
    for found, wanted in zip(rest.history, whole.history, strict=True):
        assert found == pytest.approx(wanted, abs=1e-12)


def test_what_has_no_part_in_the_loss_stays_and_a_checkpoint_holds_one_member_alone() -> None:
    kept = Kept()
    _, members = together([fit_of(0), fit_of(1, checkpoint=kept)])
    module: Any = members[1].fit.module
    assert module.unused.tolist() == [1.0, 1.0]
    assert kept.state is not None
    moments = kept.state["optimiser"]["state"]
    assert list(moments) == [0]
    assert [value.untyped_storage().nbytes() for value in moments[0].values()] == [4, 12, 12]
    assert float(moments[0]["step"]) == 12  # four epochs of three steps


def test_one_that_is_not_finite_ends_alone() -> None:
    population, bad, good = Population(), Member(fit_of(0, wrong=True)), Member(fit_of(1, wrong=True))
    # the others' place never gets so far: they learn too slowly
    for group in good.fit.optimiser.param_groups:
        group["lr"] = 1e-9
    expected = fit_of(1, wrong=True)
    for group in expected.optimiser.param_groups:
        group["lr"] = 1e-9
    wanted = alone(expected)
    for member in (bad, good):
        member.advance()

    def train() -> None:
        while bad.rows is not None:
            population.epoch([bad, good])

    with pytest.raises(TrainingFailed, match="loss of epoch"):
        train()
    while good.rows is not None:
        population.epoch([good])
    assert good.result is not None
    assert [epoch["train_loss"] for epoch in good.result.history] == pytest.approx(
        [epoch["train_loss"] for epoch in wanted.history]
    )


def test_numbers_and_functions_may_differ_and_nothing_else() -> None:
    def made(**parts: Any) -> SimpleNamespace:
        return SimpleNamespace(inner=SimpleNamespace(rate=0.1, name="a", call=lambda: 1), count=3, **parts)

    one, other = made(), made()
    other.inner.rate, other.count = 0.2, 5
    found = Differences.of([one, other])
    assert {(slot.key, tuple(slot.values)) for slot in found.numbers} == {("rate", (0.1, 0.2)), ("count", (3, 5))}
    assert [slot.key for slot in found.functions] == ["call"]
    assert Differences.of([one, other], ignore=("count", "inner")).numbers == []
    same, strange = made(held=torch.ones(2)), made(held=torch.zeros(2))
    assert Differences.of([same, made(held=torch.ones(2))]).numbers == []
    for unlike in (strange, made(held=None), made(held=torch.ones(2, dtype=torch.int64))):
        with pytest.raises(NotBatchable, match="held holds other numbers"):
            Differences.of([same, unlike])
    for key, value, said in (
        ("rate", 0.0, "is 0 in some"),
        ("name", "b", "name differs"),
        ("rate", None, "another kind"),
    ):
        strange = made()
        setattr(strange.inner, key, value)
        with pytest.raises(NotBatchable, match=said):
            Differences.of([one, strange])
    with pytest.raises(NotBatchable, match="in a list"):
        Differences.of([made(list=[1.0]), made(list=[2.0])])
    with pytest.raises(NotBatchable, match="same parts"):
        Differences.of([made(), made(more=1)])
