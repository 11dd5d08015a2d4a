"""The first look at a GPU, by what matters for a search of students: a minute or so each, with random data.

facts       versions, and the memory that a process takes beside torch's allocator
attention   masked attention in half precision, each back end beside exact arithmetic; cuDNN's is switched off in use
students    whether a training repeats bit by bit, and whether distillation switched off is the student alone
steps       milliseconds and operations a step, deterministic and not, for catalogues of three sizes
together    steps a second of 1 to 16 processes on one GPU, in turns and with MPS, and trials an hour
memory      whether a real shortage of memory is known as one, whoever says it

python -m benchmarks.gpu_check facts attention
python -m benchmarks.gpu_check students --device cpu     # small, on the CPU: does it run?
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine_rate import machine_line, table
from src.core.errors import OutOfMemory
from src.core.memory import give_back, is_out_of_memory
from src.core.training import LoopSettings, Report, silent
from src.data.tensor_examples import TensorExamples
from src.distill.data_bridge import TeachingRows
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.trainer_distill import train_distilled
from src.student.base import Recommender
from src.student.datamodule import StudentData
from src.student.losses import propensity
from src.student.models import require_network, student_settings
from src.student.settings import EvaluationSettings, NetworkSettings
from src.student.trainer_baseline import train_student
from src.tuning.resources import CONTEXT_BYTES

BATCH, WINDOW, CANDIDATES, LLM_WIDTH = 256, 10, 10, 64
#: of a trial of the embedded sample: 30 epochs of 16,064 rows
TRIAL_STEPS = 30 * 63
NOTHING = DistillSettings(lam=0.0, alpha=0.0, ed_weight=0.0)
EVERYTHING = DistillSettings(embedding_loss_weight=0.1)
_PACKAGES = ("transformers", "peft", "bitsandbytes", "ray", "optuna", "triton")
_MIB = 2**20


# --------------------------------------------------------------------------------------------------------------- facts


def facts(device: torch.device) -> Iterator[str]:
    """Table: what is there."""
    rows = [("Python", platform.python_version()), ("torch", torch.__version__), ("cores", str(os.cpu_count()))]
    for package in _PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "none"))
    rows.append(("MPS", shutil.which("nvidia-cuda-mps-control") or "none"))
    if device.type == "cuda":
        rows += _gpu_facts(device)
    yield table(["fact", "value"], rows)


def _gpu_facts(device: torch.device) -> list[tuple[str, str]]:
    free, total = torch.cuda.mem_get_info(device)
    # what makes the libraries load: matrix products, a recurrent layer, its backward pass
    layer = nn.GRU(64, 64, batch_first=True).to(device)
    layer(torch.randn(8, WINDOW, 64, device=device))[0].sum().backward()
    torch.cuda.synchronize(device)
    libraries = free - torch.cuda.mem_get_info(device)[0] - torch.cuda.memory_reserved(device)
    return [
        ("cuDNN", str(torch.backends.cudnn.version())),
        ("memory, GiB", f"{total / 2**30:.1f}, {free / 2**30:.1f} free"),
        ("libraries after the context, MiB", f"{libraries / _MIB:.0f}"),
        ("this process as nvidia-smi sees it, MiB", _as_the_driver_sees()),
        ("of which torch's allocator holds, MiB", f"{torch.cuda.memory_reserved(device) / _MIB:.0f}"),
        ("what a share leaves for that, MiB", f"{CONTEXT_BYTES / _MIB:.0f}"),
    ]


def _as_the_driver_sees() -> str:
    """MiB of this process; a container's processes have other numbers outside."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    asked = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    mine = [line.split(",")[1].strip() for line in said.splitlines() if line.startswith(f"{os.getpid()},")]
    return mine[0] if mine else "not shown"


# ----------------------------------------------------------------------------------------------------------- attention

_BACK_ENDS: Mapping[str, SDPBackend | None] = {
    "math": SDPBackend.MATH,
    "torch's choice": None,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}


def attention(device: torch.device) -> Iterator[str]:
    """Table: rows padded on the left under a causal mask; errors are against float32 arithmetic, over real places."""
    rows = []
    for width in (64, 128):
        for places in (64, 100, 704) if device.type == "cuda" else (16,):
            rows += [(str(width), str(places), name, *_masked(device, width, places, name)) for name in _BACK_ENDS]
    yield table(["head width", "places", "back end", "relative error", "not finite: output, q, k, v", "ms"], rows)


def _masked(device: torch.device, width: int, places: int, name: str) -> tuple[str, str, str]:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    query, key, value = (torch.randn(4, 8, places, width, device=device, dtype=dtype) for _ in range(3))
    first = torch.tensor([0, 5, places // 2, places - 3], device=device)[:, None]
    real = torch.arange(places, device=device) >= first
    mask = real[:, None, None, :] & torch.ones(places, places, dtype=torch.bool, device=device).tril()
    exact = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask)
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    chosen = _BACK_ENDS[name]
    try:
        with sdpa_kernel(chosen) if chosen is not None else nullcontext():
            start = time.perf_counter()
            found = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
            shown = real[:, None, :, None]
            gradients = torch.autograd.grad((found * shown).float().square().sum(), inputs)
            strange = [int((~torch.isfinite(tensor)).sum()) for tensor in (found, *gradients)]
            seconds = time.perf_counter() - start
    except RuntimeError as error:
        return "none", str(error).splitlines()[0][:60], ""
    error_norm = torch.where(shown, found.detach().float() - exact, 0).norm() / torch.where(shown, exact, 0).norm()
    return f"{float(error_norm):.1e}", ", ".join(map(str, strange)), f"{1e3 * seconds:.1f}"


# ------------------------------------------------------------------------------------------------------------ students


def made_up(device: torch.device, items: int, steps: int) -> tuple[StudentData, TeachingRows]:
    """Random histories of ``steps`` batches; every row is labelled."""
    rows, draw = steps * BATCH, torch.Generator().manual_seed(0)
    history = torch.randint(items, (rows, WINDOW), generator=draw)
    columns = (history, torch.full((rows,), WINDOW), torch.randint(items, (rows,), generator=draw), torch.arange(rows))
    train, validation = (
        on_device(TensorExamples.of_rows(*(column[:count] for column in columns)), items, device)
        for count in (rows, BATCH)
    )
    counts = torch.randint(500, (items,), generator=draw)
    candidates = torch.randint(items, (rows + 1, CANDIDATES), generator=draw)
    distances = torch.rand(rows + 1, CANDIDATES, generator=draw).sort(dim=1).values * 5
    teaching = TeachingRows(
        *(
            tensor.to(device)
            for tensor in (
                torch.arange(rows), candidates, distances,
                torch.randn(rows + 1, LLM_WIDTH, generator=draw), torch.randn(items, LLM_WIDTH, generator=draw),
            )
        )
    )  # fmt: skip
    p = propensity(counts).float().to(device)
    return StudentData(train, validation, items, WINDOW, p, counts.to(device)), teaching


def on_device(examples: TensorExamples, padding_id: int, device: torch.device) -> TensorExamples:
    """The same on a device."""
    moved = {name: value.to(device) for name, value in examples.tensors().items() if value.dim()}
    return replace(examples, padding_id=padding_id, **moved)  # type: ignore[arg-type]


def settings_of(architecture: str = "sasrec", epochs: int = 2, **changes: object) -> NetworkSettings:
    """A student of the default width."""
    loop = LoopSettings(epochs=epochs, patience=10**6, batch_size=BATCH, checkpoint_minutes=0)
    return require_network(student_settings(architecture, prior="none", loop=replace(loop, **changes)))  # type: ignore[arg-type]


def train(
    data: StudentData,
    teaching: TeachingRows,
    settings: NetworkSettings,
    distill: DistillSettings | None,
    policy: str = "all",
    report: Report = silent,
) -> Recommender:
    """A student, alone where ``distill`` is None."""
    evaluation = EvaluationSettings()
    if distill is None:
        return train_student(settings, evaluation, data, 0, report).student
    active = ActiveSettings(policy=policy)  # type: ignore[arg-type]
    return train_distilled(settings, distill, active, evaluation, data, teaching, 0, report).student


def students(device: torch.device) -> Iterator[str]:
    """Table: pairs of trainings, and whether they end in the same bits."""
    data, teaching = made_up(device, 2000, 16) if device.type == "cuda" else made_up(device, 50, 2)
    rows = []
    for architecture in ("transformer", "sasrec", "gru4rec", "caser"):
        settings = settings_of(architecture)
        alone = _bits(train(data, teaching, settings, None))
        rows.append((architecture, "alone, twice", _same(alone, train(data, teaching, settings, None))))
        rows.append((architecture, "distillation off, alone", _same(alone, train(data, teaching, settings, NOTHING))))
        for policy in ("all", "kl_divergence", "ground_truth_error"):
            first, second = (train(data, teaching, settings, EVERYTHING, policy) for _ in range(2))
            rows.append((architecture, f"distilled, {policy}, twice", _same(_bits(first), second)))
    yield table(["student", "trained", "same bits"], rows)


def _bits(student: Recommender) -> list[Tensor]:
    return [value.clone() for value in student.state_dict().values()]


def _same(bits: Sequence[Tensor], student: Recommender) -> str:
    return "yes" if all(map(torch.equal, bits, student.state_dict().values())) else "NO"


# --------------------------------------------------------------------------------------------------------------- steps


class _Enough(Exception):
    """A training has been looked at long enough."""


def rate(
    data: StudentData, teaching: TeachingRows, distill: DistillSettings | None, seconds: float, micro_batch: int = 0
) -> float:
    """Steps a second of the default student, the first epoch apart."""
    times, steps = list[float](), -(-len(data.train) // BATCH)

    def report(epoch: int, metrics: Mapping[str, float]) -> None:
        times.append(time.perf_counter())
        if len(times) > 1 and times[-1] - times[0] > seconds:
            raise _Enough

    with suppress(_Enough):
        train(data, teaching, settings_of(epochs=10**6, micro_batch_size=micro_batch), distill, report=report)
    return steps * (len(times) - 1) / (times[-1] - times[0])


def steps(device: torch.device) -> Iterator[str]:
    """Table: time and operations of one step."""
    on_gpu, rows = device.type == "cuda", []
    for items in (2000, 20_000, 200_000) if on_gpu else (50,):
        data, teaching = made_up(device, items, 32 if on_gpu else 2)
        for name, distill in (("alone", None), ("distilled", EVERYTHING)):
            fast = rate(data, teaching, distill, 1.0 if on_gpu else 0.0)
            with _not_deterministic():
                free = rate(data, teaching, distill, 1.0 if on_gpu else 0.0)
            count, busy = _kernels(device, items, distill) if on_gpu else (0.0, 0.0)
            rows.append((f"{items:,}", name, f"{1e3 / fast:.2f}", f"{1e3 / free:.2f}", f"{count:.0f}", f"{busy:.2f}"))
            give_back(device)
    yield table(["V", "step", "ms", "ms, not deterministic", "kernels", "GPU ms"], rows)


@contextmanager
def _not_deterministic() -> Iterator[None]:
    """Trainings switch determinism on by themselves; here they cannot."""
    real = torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms = lambda *_, **__: None  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms = real


def _kernels(device: torch.device, items: int, distill: DistillSettings | None) -> tuple[float, float]:
    """Kernels of a step and their milliseconds: what four steps more make of a training."""
    found = []
    for number in (2, 6):
        data, teaching = made_up(device, items, number)
        with profile(activities=[ProfilerActivity.CUDA]) as record:
            train(data, teaching, settings_of(epochs=1), distill)
            torch.cuda.synchronize(device)
        kernels = [event for event in record.events() if event.device_type == DeviceType.CUDA]
        found.append((len(kernels), sum(event.device_time for event in kernels) / 1e3))
    return (found[1][0] - found[0][0]) / 4, (found[1][1] - found[0][1]) / 4


# ------------------------------------------------------------------------------------------------------------ together


def together(device: torch.device) -> Iterator[str]:
    """Table: what processes bring that train at the same time."""
    counts = (1, 2, 4, 8, 16) if device.type == "cuda" else (1, 2)
    found = {"in turns": [_at_once(device, count) for count in counts]}
    if device.type == "cuda":
        with _mps() as runs:
            if runs:
                found["with MPS"] = [_at_once(device, count) for count in counts]
    rows = [(str(count), *(_pace(values, place) for values in found.values())) for place, count in enumerate(counts)]
    yield table(["at once", *(f"{name}: steps/s (of one), trials/h" for name in found)], rows)


def _pace(values: Sequence[float], place: int) -> str:
    """Steps a second in all, how many times one alone, and trials of the sample an hour, evaluations apart."""
    steps = values[place]
    return f"{steps:.0f} ({steps / values[0]:.1f}), {3600 * steps / TRIAL_STEPS:.0f}"


def _at_once(device: torch.device, count: int) -> float:
    """Steps a second of so many processes in all; they begin together."""
    words = [sys.executable, "-m", "benchmarks.gpu_check", "worker", "--device", str(device)]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            )
            for _ in range(count)
        ]
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        return sum(float(worker.communicate()[0] or "nan") for worker in workers)


def worker(device: torch.device) -> Iterator[str]:
    """One of the processes of `together`: ready, waits for a line, trains, says its steps a second."""
    on_gpu = device.type == "cuda"
    data, teaching = made_up(device, 2000, 32) if on_gpu else made_up(device, 50, 2)
    rate(data, teaching, EVERYTHING, 0.0)
    yield "ready"
    sys.stdin.readline()
    yield str(rate(data, teaching, EVERYTHING, 3.0 if on_gpu else 0.0))


@contextmanager
def _mps() -> Iterator[bool]:
    """A daemon of this run's own for the block; whether it runs."""
    control = shutil.which("nvidia-cuda-mps-control")
    with tempfile.TemporaryDirectory(prefix="mps-") as folder, ExitStack() as stack:
        for name, value in (("CUDA_MPS_PIPE_DIRECTORY", folder), ("CUDA_MPS_LOG_DIRECTORY", str(Path(folder) / "log"))):
            stack.callback(_put_back, name, os.environ.get(name))
            os.environ[name] = value
        runs = control is not None and subprocess.run([control, "-d"], check=False).returncode == 0
        if runs and control is not None:
            stack.callback(subprocess.run, [control], input="quit\n", text=True, check=False, timeout=30)
        yield runs


def _put_back(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


# -------------------------------------------------------------------------------------------------------------- memory


def memory(device: torch.device) -> Iterator[str]:
    """Table: a shortage is made, and told as `OutOfMemory` or known by `is_out_of_memory`."""
    if device.type != "cuda":
        yield table(["shortage", "said", "known"], [("none on a CPU", "", "")])
        return
    data, teaching = made_up(device, 200_000, 2)
    torch.cuda.set_per_process_memory_fraction(0.005, device)
    rows = [
        ("a share that is too small", *_said(lambda: rate(data, teaching, None, 0.0))),
        ("the same, in parts of a batch", *_said(lambda: rate(data, teaching, None, 0.0, micro_batch=8))),
    ]
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    held = list[Tensor]()
    try:
        # everything but so little that no library can make its workspace
        while torch.cuda.mem_get_info(device)[0] > 8 * _MIB:
            held.append(
                torch.empty(max(torch.cuda.mem_get_info(device)[0] // 2, _MIB), dtype=torch.uint8, device=device)
            )
    except torch.OutOfMemoryError:
        pass
    layer = nn.Conv2d(3, 8, 3).to("cpu")
    rows.append(("a library's workspace", *_said(lambda: torch.linalg.svd(torch.randn(64, 64, device=device)))))
    rows.append(
        ("a model's move to the GPU", *_said(lambda: layer.to(device)(torch.randn(64, 3, 512, 512).to(device))))
    )
    held.clear()
    yield table(["shortage", "said", "known"], rows)


def _said(action: Callable[[], object]) -> tuple[str, str]:
    try:
        action()
    except (OutOfMemory, RuntimeError) as error:
        known = isinstance(error, OutOfMemory) or is_out_of_memory(error)
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}", "yes" if known else "NO"
    return "no shortage", ""


# ------------------------------------------------------------------------------------------------------------- command

PARTS: Mapping[str, Callable[[torch.device], Iterator[str]]] = {
    "facts": facts,
    "attention": attention,
    "students": students,
    "steps": steps,
    "together": together,
    "memory": memory,
}


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "worker"], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a small look at whether it runs")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Print a table for each part."""
    options = arguments(words)
    torch.set_num_threads(1)
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device(options.device)
    if options.parts == ["worker"]:
        for line in worker(device):
            print(line, flush=True)
        return
    print(machine_line(device))
    for part in options.parts:
        for block in PARTS[part](device):
            print(f"\n{block}", flush=True)


if __name__ == "__main__":
    main()
