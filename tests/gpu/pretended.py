"""A GPU that is not there. Tensors are computed on the CPU, but each storage is marked with a device, and the two kinds
do not mix: what a real GPU refuses is refused here, and what a real one would have to wait for is counted.

    with PretendedGPU() as gpu:
        ...
    gpu.waits     # how often the program waited for the GPU, by reason and by the function of `src` that asked
    gpu.kernels   # how many operations it was given

It refuses an operation over tensors of both devices, `.numpy()` of a GPU tensor, a generator of the other device, a
device without an index and memory figures before CUDA has started, as torch does. It knows nothing of precision, of
races, of streams, or of memory that runs out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import PurePath
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._functorch.autograd_function import custom_function_call
from torch.cuda._utils import _get_device_index
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU, CPU, META = torch.device("cuda", 0), torch.device("cpu"), torch.device("meta")
#: the mark of what torch makes for itself inside an operation, where it really computes: no line of the program has
#: asked for it, and a real GPU would have it where the operation's tensors are
ANYWHERE = torch.device("lazy")

_aten = torch.ops.aten
_GENERATOR = torch.Generator
_COPIES = {_aten.copy_.default, _aten._to_copy.default}
#: these read or change a tensor where it lies, whatever else is among their arguments
_IN_PLACE_OF_FIRST = ("aten::lift", "aten::set_", "aten::detach", "aten::resize_")
_INDEXING = {
    _aten.index.Tensor, _aten._unsafe_index.Tensor, _aten.index_put.default, _aten.index_put_.default,
    _aten._index_put_impl_.default, _aten._unsafe_index_put.default,
}  # fmt: skip
#: their result's size or value must be known on the host
_WAITING = {
    _aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default, _aten.equal.default,
    _aten.repeat_interleave.Tensor, _aten.is_nonzero.default, _aten._unique2.default, _aten.unique_dim.default,
    _aten.bincount.default,
}  # fmt: skip


class _Kind(Enum):
    COPY, IN_PLACE_OF_FIRST, INDEXING, SPARSE, WAITING, OTHER = range(6)


@dataclass(frozen=True)
class _Operation:
    """What there is to know of an operation, looked up once: torch hashes and names them anew each time."""

    name: str
    view: bool
    kind: _Kind

    @classmethod
    def of(cls, func: Any) -> _Operation:
        """Of an overload of torch's, which lives as long as the process."""
        if (found := _KNOWN.get(id(func))) is None:
            name = func.name()
            kind = (
                _Kind.COPY if func in _COPIES
                else _Kind.IN_PLACE_OF_FIRST if name.startswith(_IN_PLACE_OF_FIRST)
                else _Kind.INDEXING if func in _INDEXING
                else _Kind.SPARSE if func is _aten._sparse_coo_tensor_with_dims_and_tensors.default
                else _Kind.WAITING if func in _WAITING
                else _Kind.OTHER
            )  # fmt: skip
            found = _KNOWN[id(func)] = cls(name, func.is_view, kind)
        return found


_KNOWN: dict[int, _Operation] = {}
_MOVES = {torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu}
#: what makes a tensor out of nothing: on the host where the program names no device
_FACTORIES = {
    torch.arange, torch.empty, torch.empty_strided, torch.eye, torch.full, torch.linspace, torch.logspace, torch.normal,
    torch.ones, torch.rand, torch.randint, torch.randn, torch.randperm, torch.scalar_tensor, torch.tril_indices,
    torch.triu_indices, torch.zeros,
}  # fmt: skip
_NEW = {
    torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_full, torch.Tensor.new_tensor,
    torch.Tensor.new_empty,
}  # fmt: skip


class MixedDevices(RuntimeError):
    """An operation over tensors of both devices."""


def _held(tensor: Tensor) -> Tensor:
    """The tensor of all members of which `torch.vmap` shows one; any other tensor itself."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def device_of(tensor: Tensor) -> torch.device:
    """The device that a tensor pretends to be on: its storage's mark, which lives as long as the storage."""
    with torch._C.DisableTorchFunction():
        tensor = _held(tensor)
        if tensor.device.type == "meta":
            return META
        if tensor.layout == torch.sparse_coo:
            tensor = tensor._values()
        try:
            return getattr(tensor.untyped_storage(), "pretended", CPU)
        except (NotImplementedError, RuntimeError):  # a tensor without a storage of its own
            return CPU


def mark(tensor: Tensor, device: torch.device) -> None:
    """Put a mark on a tensor's storage."""
    with torch._C.DisableTorchFunction():
        tensor = _held(tensor)
        for part in (tensor._indices(), tensor._values()) if tensor.layout == torch.sparse_coo else (tensor,):
            if part.device.type != "meta":
                known = GPU if device.type == "cuda" else device if device == ANYWHERE else CPU
                part.untyped_storage().pretended = known  # type: ignore[attr-defined]


def _tensors(*values: Any) -> list[Tensor]:
    """The tensors that an operation was given or gives, out of lists, tuples and dictionaries: torch's own walk knows
    of more, and takes longer than most operations here."""
    found, open_ones = list[Tensor](), list(reversed(values))
    while open_ones:
        value = open_ones.pop()
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            open_ones.extend(reversed(value))
        elif isinstance(value, dict):
            open_ones.extend(reversed(value.values()))
    return found


def _same_storage(first: Tensor, second: Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return _held(first).untyped_storage()._cdata == _held(second).untyped_storage()._cdata


def _named(device: Any) -> torch.device | None:
    """A device argument as a device; a number alone is a GPU's."""
    if device is None:
        return None
    found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return GPU if found.type == "cuda" else found


def _computable(device: torch.device) -> torch.device:
    """Where it is really computed."""
    return CPU if device.type == "cuda" else device


@cache
def _place(file: str) -> tuple[str, bool] | None:
    """A file as it is told, and whether it is the program's; None for this one and for libraries."""
    path = PurePath(file)
    if "site-packages" in path.parts or "torch" in path.parts or path == PurePath(__file__):
        return None
    return (f"{path.parent.name}/{path.name}", True) if "src" in path.parts else (path.name, False)


def asking() -> str:
    """The innermost function of `src` that is running, `room/file.py function`; of a test where there is none."""
    frame, other = sys._getframe(1), ""
    while frame is not None:
        if place := _place(frame.f_code.co_filename):
            told = f"{place[0]} {frame.f_code.co_name}"
            if place[1]:
                return told
            other = other or told
        frame = frame.f_back  # type: ignore[assignment]
    return other


class _Dispatch(TorchDispatchMode):
    """Below autograd: every operation that is computed, those of the backward pass among them."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here: torch's guard around each operation only takes time."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute it on the CPU, and mark what comes out."""
        named = dict(kwargs or {})
        given = _tensors(args, named)
        # a device among the arguments is the one that it is really computed on
        asked = META if _named(named.get("device")) == META else self.gpu.asked
        operation = _Operation.of(func)
        device = self._device(operation, func, args, given, asked, bool(named.get("non_blocking")))
        if device == GPU:
            self.gpu.computes(operation)
        result = func(*args, **named)
        if func is not _aten._local_scalar_dense.default:
            known = {id(tensor) for tensor in given}
            for made in _tensors(result):
                if id(made) not in known:
                    mark(made, device)
        return result

    def _device(
        self,
        operation: _Operation,
        func: Any,
        args: Sequence[Any],
        given: Sequence[Tensor],
        asked: torch.device | None,
        flows: bool,
    ) -> torch.device:
        """Where the result lies; raises ``MixedDevices``."""
        devices = [device_of(tensor) for tensor in given]
        if not devices:
            return asked or ANYWHERE
        if ANYWHERE in devices:
            devices = self._settled(given, devices)
        kind = operation.kind
        if kind is _Kind.COPY:
            target = devices[0] if func is _aten.copy_.default else (asked or devices[0])
            if {target.type, devices[-1].type} == {"cpu", "cuda"}:
                self.gpu.crosses(devices[-1], target, flows)
            return target
        if kind is _Kind.IN_PLACE_OF_FIRST:
            return devices[0]
        if kind is _Kind.INDEXING:
            return self._indexed(func, args, devices)
        if kind is _Kind.SPARSE:
            return devices[-1]  # torch makes the places of a sparse gradient where it really computes
        there = {device.type for tensor, device in zip(given, devices, strict=True) if device != CPU or tensor.dim()}
        if {"cuda", "cpu"} <= there:
            shapes = [f"{tuple(t.shape)} on {d.type}" for t, d in zip(given, devices, strict=True)]
            raise MixedDevices(f"{operation.name} over tensors of both devices, {', '.join(shapes)}, in {asking()}")
        if "meta" in there:
            return META
        if GPU not in devices:
            return asked or devices[0]
        if kind is _Kind.WAITING:
            self.gpu.waits_for(operation.name)
        return GPU

    @staticmethod
    def _settled(given: Sequence[Tensor], devices: Sequence[torch.device]) -> list[torch.device]:
        """What lay anywhere lies from now on where the others are."""
        needed = next((device for device in devices if device != ANYWHERE), ANYWHERE)
        for tensor, device in zip(given, devices, strict=True):
            if device == ANYWHERE:
                mark(tensor, needed)
        return [needed if device == ANYWHERE else device for device in devices]

    def _indexed(self, func: Any, args: Sequence[Any], devices: Sequence[torch.device]) -> torch.device:
        """An index on the host is brought to the GPU; one on the GPU cannot look into the host's tensor."""
        device = devices[0]
        if device.type != "cuda":
            if GPU in devices:
                raise MixedDevices(f"{func.name()}: the index lies on the GPU, the tensor does not, in {asking()}")
            return device
        if CPU in devices:
            self.gpu.crosses(CPU, GPU, flows=False)
        if any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
            self.gpu.waits_for("mask as an index")
        return device


class _Functions(TorchFunctionMode):
    """Above autograd: what a tensor says of its device, and how it is made or moved."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu
        self._functions: dict[Any, Any] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer for the pretended device, or let torch do it and mark what comes out."""
        named = dict(kwargs or {})
        told = self._told(func, args)
        if told is not None:
            return told
        if func in _MOVES:
            return self._moved(func, args, named)
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is custom_function_call:  # within it this mode would be off
            args = (self._watched(args[0]), *args[1:])
        if named.get("pin_memory"):
            named["pin_memory"] = False
        asked = _named(named.get("device"))
        if asked is None and func in _FACTORIES and not any(isinstance(leaf, Tensor) for leaf in args):
            asked = CPU
        self._check_generator(func, args, named, asked)
        if asked is not None:
            return self._made(func, args, named, asked)
        result = func(*args, **named)
        if func in _NEW:
            mark(result, device_of(args[0]))
        elif func in (torch.from_numpy, torch.frombuffer):
            mark(result, CPU)
        elif getattr(func, "__name__", "") == "__set__" and getattr(func, "__self__", None) is torch.Tensor.data:
            mark(args[0], device_of(args[1]))
        return result

    def _watched(self, function: Any) -> Any:
        """An `autograd.Function` whose own rule of what it does for all members of `torch.vmap` is under this mode."""
        if function not in self._functions:

            class Watched(function):  # type: ignore[misc]
                @staticmethod
                def vmap(*arguments: Any) -> Any:
                    with self:
                        return function.vmap(*arguments)

            self._functions[function] = Watched
        return self._functions[function]

    def _told(self, func: Any, args: Sequence[Any]) -> Any:
        """The answer to a question about a tensor's place, None where it is no such question."""
        asked = getattr(func, "__self__", None) if getattr(func, "__name__", "") == "__get__" else None
        if asked is torch.Tensor.device:
            return device_of(args[0])
        if asked in (torch.Tensor.is_cuda, torch.Tensor.is_cpu):
            return device_of(args[0]).type == ("cuda" if asked is torch.Tensor.is_cuda else "cpu")
        if func is torch.Tensor.get_device:
            return 0 if device_of(args[0]) == GPU else -1
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and device_of(args[0]) == GPU:
            raise TypeError(f"can't convert cuda:0 device type tensor to numpy, in {asking()}")
        if func is torch.Tensor.tolist and device_of(args[0]) == GPU:
            self.gpu.waits_for("tolist")
        return None

    def _check_generator(
        self, func: Any, args: Sequence[Any], named: Mapping[str, Any], asked: torch.device | None
    ) -> None:
        generator = named.get("generator")  # torch takes it by its name alone
        if generator is not None:
            drawn_on = asked or next((device_of(leaf) for leaf in args if isinstance(leaf, Tensor)), CPU)
            home = GPU if getattr(generator, "pretended", False) else CPU
            if home != drawn_on:
                name = getattr(func, "__name__", func)
                raise MixedDevices(f"{name}: a generator of the other device, in {asking()}")

    def _made(self, func: Any, args: Sequence[Any], named: dict[str, Any], device: torch.device) -> Any:
        named["device"] = _computable(device)
        with self.gpu.asking_for(device):
            result = func(*args, **named)
        for made in _tensors(result):
            mark(made, device)
        if device.type == "cuda" and func in (torch.tensor, torch.as_tensor):
            self.gpu.crosses(CPU, device, flows=False)
        return result

    def _moved(self, func: Any, args: Sequence[Any], named: dict[str, Any]) -> Any:
        """`to`, `cuda`, `cpu`: the tensor itself where it lies there already, else a copy with the other mark."""
        source, rest, device = args[0], list(args[1:]), None
        if func is not torch.Tensor.to:
            device, rest = (GPU if func is torch.Tensor.cuda else CPU), []
        elif rest and isinstance(rest[0], Tensor):
            device, rest[:1] = device_of(rest[0]), [_computable(device_of(rest[0])), rest[0].dtype]
        elif rest and isinstance(rest[0], (str, int, torch.device)):
            device = _named(rest[0])
            rest[0] = _computable(device)  # type: ignore[arg-type]
        elif named.get("device") is not None:
            device = _named(named["device"])
            named["device"] = _computable(device)  # type: ignore[arg-type]
        if device is None or META in (device, device_of(source)):
            return torch.Tensor.to(source, *rest, **named) if rest or named else source
        before = device_of(source)
        with self.gpu.asking_for(device):
            result = torch.Tensor.to(source, *rest, **named) if rest or named else source
            if before != device and (result is source or _same_storage(result, source)):
                result = source.clone(memory_format=torch.preserve_format)
                self.gpu.crosses(before, device, bool(named.get("non_blocking")))
        if result is not source:
            mark(result, device)
        return result


class PretendedGPU:
    """One GPU of 80 GB, of which ``free`` bytes are free, for the block; see the module."""

    def __init__(self, free: int = 79 * 2**30, total: int = 80 * 2**30, count: int = 1) -> None:
        self.free, self.total, self.count = free, total, count
        #: bytes that torch's allocator reports
        self.peak = 10**8
        #: shares of the memory that the process was limited to, in order
        self.limits: list[float] = []
        self.waits: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.started = False
        self._asked: list[torch.device] = []
        self._stream = torch.Generator().manual_seed(1)
        self._stack = ExitStack()

    # ------------------------------------------------------------------------------------------- what the modes tell

    @property
    def asked(self) -> torch.device | None:
        """The device that the innermost call names."""
        return self._asked[-1] if self._asked else None

    @contextmanager
    def asking_for(self, device: torch.device) -> Iterator[None]:
        """Calls within name this device."""
        self._asked.append(device)
        try:
            yield
        finally:
            self._asked.pop()

    def computes(self, operation: _Operation) -> None:
        """An operation is given to the GPU; a view of a tensor is none."""
        self.started = True
        if not operation.view:
            self.kernels[operation.name] += 1

    def waits_for(self, what: str) -> None:
        """The program cannot go on before the GPU has come so far."""
        self.waits[f"{what}: {asking()}"] += 1

    def crosses(self, source: torch.device, target: torch.device, flows: bool) -> None:
        """A copy from one device to the other; one to the GPU may flow beside the program where it says so."""
        if source.type == "cuda":
            self.waits_for("copy to the host")
        elif not flows:
            self.waits_for("copy to the GPU")

    # ------------------------------------------------------------------------------------------------- torch.cuda's own

    def __enter__(self) -> PretendedGPU:
        """There is a GPU from here on."""
        for name, value in self._cuda().items():
            self._stack.enter_context(mock.patch.object(torch.cuda, name, value))
        self._stack.enter_context(mock.patch.object(torch, "Generator", self._generator()))
        self._stack.enter_context(_Dispatch(self))
        self._stack.enter_context(_Functions(self))
        return self

    def __exit__(self, *error: object) -> None:
        """And now there is none."""
        self._stack.close()

    def _generator(self) -> Any:
        """`torch.Generator`, which is asked for a GPU's stream here and draws it on the CPU."""

        class Generator(_GENERATOR):
            def __new__(cls, device: Any = "cpu") -> Any:
                made = _GENERATOR.__new__(cls, device="cpu")
                made.pretended = torch.device(device).type == "cuda"
                return made

            @property
            def device(self) -> torch.device:
                return GPU if self.pretended else CPU

        return Generator

    def _cuda(self) -> dict[str, Any]:
        def start() -> None:
            self.started = True

        def limit(fraction: float, device: Any = None) -> None:
            _get_device_index(device)
            if not (isinstance(fraction, float) and 0 <= fraction <= 1):
                raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
            start()
            self.limits.append(fraction)

        def figure(device: Any = None) -> int:
            return self.peak

        def reset(device: Any = None) -> None:
            if not self.started:
                raise RuntimeError("Invalid device argument 0: did you call init?")

        properties = SimpleNamespace(
            total_memory=self.total, name="pretended", major=9, minor=0, multi_processor_count=132
        )
        return {
            "is_available": lambda: True,
            "is_initialized": lambda: self.started,
            "init": start,
            "_lazy_init": start,
            "device_count": lambda: self.count,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: "pretended",
            "get_device_properties": lambda device=None: properties,
            "get_device_capability": lambda device=None: (9, 0),
            "is_bf16_supported": lambda *_, **__: True,
            "get_rng_state": lambda device="cuda": self._stream.get_state(),
            "set_rng_state": lambda state, device="cuda": self._stream.set_state(state),
            "mem_get_info": lambda device=None: (self.free, self.total),
            "memory_allocated": figure,
            "memory_reserved": figure,
            "max_memory_allocated": figure,
            "max_memory_reserved": figure,
            "reset_peak_memory_stats": reset,
            "set_per_process_memory_fraction": limit,
            "empty_cache": lambda: None,
            "synchronize": lambda device=None: None,
        }
