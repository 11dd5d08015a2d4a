"""A population's members as matrices: their weights, moments and means, one batched step, and a look at whether it is
what each of them would compute alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from src.core.differences import Differences, DifferingValue, NotBatchable
from src.core.errors import first_line
from src.core.member_draws import MemberDraws
from src.core.memory import is_out_of_memory
from src.core.training import Fitting

if TYPE_CHECKING:
    from src.core.population import Member

#: how far a member's first loss in the population may be from its loss alone, relative to that or 1
_TOLERANCE = 1e-3
#: the same of the gradient of each weight, relative to its norm or to a share of the norm of all: where the loss does
#: not depend on a weight, its gradient is rounding alone
_GRADIENT_TOLERANCE, _LEAST_SHARE = 1e-2, 1e-3


class StackedMembers:
    """The members' weights ``[P, N]`` and what is kept beside them, of one population as it is now."""

    def __init__(self, members: Sequence[Member]) -> None:
        """Takes the members' parameters, moments and means over, as views.

        Raises:
            NotBatchable: they cannot be computed as one; the members are as they were.
        """
        self.members, fits = list(members), [member.fit for member in members]
        self.objective, self.module = fits[0].objective, fits[0].module
        self._counted: Sequence[str] = getattr(self.objective, "counted", ())
        self._require_alike(fits)
        self._found = Differences.of([fit.objective for fit in fits], self._counted)
        names = [name for name, value in self.module.named_parameters() if value.requires_grad]
        self._parameters = [[value for value in fit.module.parameters() if value.requires_grad] for fit in fits]
        self._shapes = [value.shape for value in self._parameters[0]]
        if any([value.shape for value in own] != self._shapes for own in self._parameters):
            raise NotBatchable("their weights have other shapes")
        self._sizes = [shape.numel() for shape in self._shapes]
        self._carrier = _Loss(self.module, self.objective)
        self._names = [f"module.{name}" for name in names]
        self._streams = _streams_of(fits)
        self._take_over(fits)

    # ------------------------------------------------------------------------------------------------ taking over

    def _require_alike(self, fits: Sequence[Fitting]) -> None:
        for fit in fits:
            if type(fit.optimiser) is not torch.optim.Adam or len(fit.optimiser.param_groups) != 1:
                raise NotBatchable(
                    "their weights are not moved by one Adam: a loss over sampled items moves tables lazily"
                )
            if fit.schedule is not None or fit.settings.adapt_micro_batch:
                raise NotBatchable("a schedule or loop.adapt_micro_batch is a training's own")
        if len({(fit.progress.micro_batch_size, fit.mean is None) for fit in fits}) > 1:
            raise NotBatchable("their loop settings differ")
        kept = [_kept(fit.module) for fit in fits]
        for name, first in kept[0].items():
            if any(name not in own or not torch.equal(own[name], first) for own in kept):
                raise NotBatchable(f"what they keep differs: {name}")

    def _take_over(self, fits: Sequence[Fitting]) -> None:
        first = self._parameters[0][0]
        self._weights = torch.stack([_flat(own) for own in self._parameters])
        self._moments = [torch.zeros_like(self._weights) for _ in range(2)]
        self._steps = torch.zeros(len(fits), len(self._sizes), device=first.device)
        self._means = (
            None if fits[0].mean is None else torch.stack([_flat(fit.mean.held()) for fit in fits if fit.mean])
        )
        for place, (fit, own) in enumerate(zip(fits, self._parameters, strict=True)):
            for number, (parameter, weight) in enumerate(zip(own, self._views(self._weights, place), strict=True)):
                parameter.data = weight
                if parameter in fit.optimiser.state:
                    self._lend_moments(fit, place, number)
            if fit.mean is not None and self._means is not None:
                fit.mean.move([value.detach() for value in own], self._views(self._means, place))
        leaves = (part.view(-1, *shape) for part, shape in zip(self._split(self._weights), self._shapes, strict=True))
        self._leaves = [leaf.detach().requires_grad_() for leaf in leaves]

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=first.dtype, device=first.device).unsqueeze(1)

        groups = [fit.optimiser.param_groups[0] for fit in fits]
        self._rate, self._decay = column([g["lr"] for g in groups]), column([g["weight_decay"] for g in groups])
        self._decays = any(group["weight_decay"] > 0 for group in groups)
        self._betas, self._epsilon = groups[0]["betas"], groups[0]["eps"]
        self._clip = column([fit.settings.gradient_clip for fit in fits])
        self._clips = any(fit.settings.gradient_clip > 0 for fit in fits)
        self._ema = column([fit.settings.ema for fit in fits])
        self._values = tuple(_tensor(slot, first) for slot in self._found.numbers)
        self._places = torch.arange(len(fits), device=first.device)
        self._used: tuple[bool, ...] = ()
        self._counted_steps: list[int] = []
        self._steps_made = torch.zeros(len(fits), 1, dtype=torch.int64, device=first.device)

    def _views(self, matrix: Tensor, place: int) -> list[Tensor]:
        parts = matrix[place].split(self._sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def _split(self, matrix: Tensor) -> list[Tensor]:
        """``[P, n]`` of each parameter, as views."""
        return list(matrix.split(self._sizes, dim=1))

    def _lend_moments(self, fit: Fitting, place: int, number: int) -> None:
        """A parameter's state in the member's own Adam becomes views, with the values that it has."""
        state = fit.optimiser.state[self._parameters[place][number]]
        shape, own = self._shapes[number], [self._split(moment)[number][place] for moment in self._moments]
        views = {"step": self._steps[place, number], "exp_avg": own[0].view(shape), "exp_avg_sq": own[1].view(shape)}
        for name, view in views.items():
            if name in state:
                view.copy_(state[name])
            state[name] = view

    # ------------------------------------------------------------------------------------------------ a step

    def step(self, rows: Tensor) -> Tensor:
        """One optimiser step of all members on rows ``[P, B]``; returns their losses ``[P]``, detached."""
        size = self.members[0].fit.progress.micro_batch_size or rows.shape[1]
        total, gradient = torch.zeros(len(rows), dtype=self._weights.dtype, device=rows.device), None
        for part in rows.split(size, dim=1):
            losses = self._losses(part) * (part.shape[1] / rows.shape[1])
            found = torch.autograd.grad(losses.sum(), self._leaves, allow_unused=True)
            self._notice(tuple(given is not None for given in found))
            flat = torch.cat([_rows(given, leaf) for given, leaf in zip(found, self._leaves, strict=True)], dim=1)
            gradient = flat if gradient is None else gradient + flat
            total = total + losses.detach()
        assert gradient is not None
        with torch.no_grad():
            self._descend(gradient)
        return total

    def _descend(self, gradient: Tensor) -> None:
        """Adam and the mean, each member with its own numbers; weights without a gradient stay what they are."""
        if self._clips:
            norm = gradient.norm(dim=1, keepdim=True)
            share = (self._clip / (norm + 1e-6)).clamp(max=1.0)
            gradient = gradient * torch.where(self._clip > 0, share, torch.ones_like(share))
            for member, own in zip(self.members, norm.squeeze(1), strict=True):
                if member.fit.settings.gradient_clip > 0:
                    member.fit.finite_check.saw_norm(own)
        first, second = self._moments
        resting = [(matrix, matrix.clone()) for matrix in (self._weights, first, second)] if self._resting else []
        self._steps += self._moved
        step = self._steps[:, self._owner] if self._uneven else self._steps[:, self._any_moved].unsqueeze(1)
        step = step.to(gradient.dtype)
        if self._decays:
            decayed = self._decay * self._weights
            gradient = gradient + (decayed if all(self._used) else decayed * self._mask)
        first.lerp_(gradient, 1 - self._betas[0])
        second.mul_(self._betas[1]).addcmul_(gradient, gradient, value=1 - self._betas[1])
        scale = (1 - self._betas[1] ** step).sqrt()
        rate = self._rate / (1 - self._betas[0] ** step)
        self._weights.sub_(rate * first / (second.sqrt() / scale + self._epsilon))
        for matrix, before in resting:
            matrix.copy_(torch.where(self._mask, matrix, before))
        if self._means is not None:
            made = self._made()
            decay = torch.minimum(self._ema, ((1 + made) / (10 + made)).to(self._ema.dtype))
            self._means.lerp_(self._weights, 1 - decay)

    def _made(self) -> Tensor:
        """How many steps each member has made, ``[P, 1]``; the host does not wait for the device."""
        steps = [member.fit.progress.steps for member in self.members]
        if steps == [before + 1 for before in self._counted_steps]:
            self._steps_made += 1
        else:
            self._steps_made = torch.tensor(steps, device=self._weights.device).unsqueeze(1)
        self._counted_steps = steps
        return self._steps_made

    def _notice(self, used: tuple[bool, ...]) -> None:
        """Which weights have a gradient: nearly always those of the step before. The others stay what they are."""
        if used == self._used:
            return
        self._used, self._any_moved = used, used.index(True)
        for number, moved in enumerate(used):
            if moved:
                self._begin_moments(number)
        device, counts = self._weights.device, self._steps.tolist()
        owner = torch.arange(len(used)).repeat_interleave(torch.tensor(self._sizes))
        self._owner, self._moved = owner.to(device), torch.tensor(used, device=device)
        self._mask = torch.tensor(used)[owner].to(device)
        #: whether a weight without a gradient has moments, by which it would go on moving
        self._resting = any(count > 0 for own in counts for count, moved in zip(own, used, strict=True) if not moved)
        #: whether those with one have had it in different numbers of steps
        self._uneven = any(len({c for c, moved in zip(own, used, strict=True) if moved}) > 1 for own in counts)

    def _begin_moments(self, number: int) -> None:
        for place, member in enumerate(self.members):
            if not member.fit.optimiser.state[self._parameters[place][number]]:
                self._lend_moments(member.fit, place, number)

    def _losses(self, rows: Tensor) -> Tensor:
        """Losses ``[P]`` of rows ``[P, B]``."""
        numbers: dict[str, float] = {}

        def one(
            weights: list[Tensor], values: tuple[Tensor, ...], place: Tensor, rows: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            varied = {id(value): slot.values[0] for slot, value in zip(self._found.numbers, values, strict=True)}
            with MemberDraws(place, [member.stream for member in self.members], varied, self._streams) as draws:
                for slot, value in zip(self._found.numbers, values, strict=True):
                    slot.owner[slot.key] = value
                for slot in self._found.functions:
                    slot.owner[slot.key] = draws.each(slot.values)
                vars(self.objective).update(dict.fromkeys(self._counted, 0.0))
                loss = functional_call(self._carrier, dict(zip(self._names, weights, strict=True)), (rows,))
                counted = {name: vars(self.objective)[name] for name in self._counted}
            numbers.update({name: value for name, value in counted.items() if not isinstance(value, Tensor)})
            return loss, {name: value for name, value in counted.items() if isinstance(value, Tensor)}

        with self._untouched():
            losses, counted = torch.vmap(one, randomness="error")(self._leaves, self._values, self._places, rows)
        for place, member in enumerate(self.members):
            own = vars(member.fit.objective)
            for name in self._counted:
                own[name] = own[name] + (counted[name][place].detach() if name in counted else numbers[name])
        return losses  # type: ignore[no-any-return]

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Objects of the first member are as they were after the block: in it they stand for all members."""
        owned = [vars(part) for part in self.module.modules()] + self._found.looked_at
        owned += [slot.owner for slot in (*self._found.numbers, *self._found.functions)]
        before = [(own, dict(own)) for own in owned]
        try:
            yield
        finally:
            for own, kept in before:
                own.clear()
                own.update(kept)

    # ------------------------------------------------------------------------------------------------ looking

    def verify(self) -> None:
        """Compute the members' first losses and gradients both ways, with the same draws and without a trace.

        Raises:
            NotBatchable: the batched pass fails, or gives others.
        """
        rows = [member.rows for member in self.members if member.rows is not None]
        part = torch.stack(rows)[:, : self.members[0].fit.progress.micro_batch_size or None]
        states = [member.fit.randomness.save() for member in self.members]

        def put_back() -> None:
            for member, state in zip(self.members, states, strict=True):
                member.fit.randomness.load(state)

        try:
            self._compare(part, put_back)
        finally:
            put_back()

    def _compare(self, rows: Tensor, put_back: Callable[[], None]) -> None:
        """Raises ``NotBatchable`` where what is computed of rows ``[P, B]`` differs; ``put_back`` undoes all draws."""
        try:
            together = self._losses(rows)
            found = torch.autograd.grad(together.sum(), self._leaves, allow_unused=True)
        except (RuntimeError, TypeError, ValueError) as error:  # whatever has something against tensors for numbers
            if is_out_of_memory(error):
                raise
            raise NotBatchable(first_line(error)) from error
        put_back()
        for place, (member, own, loss) in enumerate(zip(self.members, rows, together.tolist(), strict=True)):
            with MemberDraws(torch.tensor(0), [member.stream], {}):
                expected = member.fit.objective.loss(own)
            wanted = torch.autograd.grad(expected, self._parameters[place], allow_unused=True)
            alone = float(expected.detach())
            if not abs(loss - alone) <= _TOLERANCE * max(1.0, abs(alone)):
                raise NotBatchable(f"the batched loss is {loss:.6g} where it is {alone:.6g} alone")
            if strange := _strange([None if of is None else of[place] for of in found], wanted):
                raise NotBatchable(f"the batched gradient of {self._names[strange.pop()]} is another one")


class _Loss(nn.Module):
    """An objective as a module's forward pass, for `functional_call`."""

    def __init__(self, module: nn.Module, objective: Any) -> None:
        super().__init__()
        self.module = module
        self._objective = (objective,)

    def forward(self, rows: Tensor) -> Tensor:
        """The objective's loss."""
        return self._objective[0].loss(rows)  # type: ignore[no-any-return]


def _kept(module: nn.Module) -> dict[str, Tensor]:
    """What a step reads and does not move: buffers and frozen weights."""
    frozen = {name: value for name, value in module.named_parameters() if not value.requires_grad}
    return {**dict(module.named_buffers()), **frozen}


def _streams_of(fits: Sequence[Fitting]) -> dict[int, list[torch.Generator]]:
    """The streams that the fits' objectives draw from, by the id of the first fit's: each fit's, in their order."""
    held = [[s for s in fit.randomness.streams if isinstance(s, torch.Generator)] for fit in fits]
    return {id(own[0]): list(own) for own in zip(*held, strict=True)}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _rows(gradient: Tensor | None, leaf: Tensor) -> Tensor:
    """``[P, n]``, n = 1 for a weight that is a number; zeros where a weight has no part in the loss."""
    return (torch.zeros_like(leaf) if gradient is None else gradient).reshape(len(leaf), -1)


def _strange(found: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> list[int]:
    """The places at which gradients are not those that are wanted."""
    norms = [0.0 if own is None else float(own.norm()) for own in wanted]
    least = _LEAST_SHARE * sum(norm * norm for norm in norms) ** 0.5

    def apart(one: Tensor | None, other: Tensor | None) -> float:
        if one is None or other is None:
            return 0.0 if one is other else float((one if other is None else other).norm())  # type: ignore[union-attr]
        return float((one.view_as(other) - other).norm())

    pairs = zip(found, wanted, norms, strict=True)
    return [
        place
        for place, (one, other, norm) in enumerate(pairs)
        if not apart(one, other) <= _GRADIENT_TOLERANCE * max(norm, least)
    ]


def _tensor(slot: DifferingValue, like: Tensor) -> Tensor:
    """What stands in a place, ``[P]``; whole numbers stay whole."""
    whole = isinstance(slot.values[0], int)
    return torch.tensor(slot.values, dtype=torch.int64 if whole else like.dtype, device=like.device)
