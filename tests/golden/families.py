"""Which check answers for which files: every file of a family belongs to a case, whatever it is called."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tests.golden.check_data import check_mini_dllm2rec, check_mini_llara
from tests.golden.check_losses import check_eval, check_loss_case, check_propensity
from tests.golden.check_students import check_ilora_rec, check_seqrec
from tests.golden.check_teacher import check_gating, check_moelora, check_projector, check_router
from tests.golden.check_titles import check_hit_ratio, check_label_mask, check_lr_schedule, check_prompt_text
from tests.golden.check_training import check_train_trace
from tests.golden.sources import Sources, every_array_used, require


@dataclass(frozen=True)
class Case:
    """A group of files and the check that answers for all of their content."""

    family: str
    name: str
    files: tuple[Path, ...]
    check: Callable[[Sources], None]

    def run(self) -> None:
        """Raise ``GoldenMismatch`` where ours differs, and where something in the files was not looked at."""
        with every_array_used(self.files) as sources:
            self.check(sources)


def _names(path: Path) -> set[str]:
    with np.load(path) as content:
        return set(content.files)


def _partner(file: Path, suffix: str) -> Path:
    """The file beside this one whose name starts alike, with another suffix."""
    found = [path for path in sorted(file.parent.glob(f"*{suffix}")) if path != file]
    same = [path for path in found if path.stem == file.stem] or [
        path for path in found if file.stem.startswith(path.stem) or path.stem.startswith(file.stem)
    ]
    candidates = same or found
    require(len(candidates) == 1, f"{file.name} needs one {suffix} file beside it, found {len(candidates)}")
    return candidates[0]


def _loss_cases(folder: Path) -> Iterator[Case]:
    for file in sorted(folder.glob("*.npz")):
        yield Case(folder.name, file.stem, (file,), partial(check_loss_case, file=file))
    for file in sorted(folder.glob("*.json")):
        yield Case(folder.name, file.stem, (file,), partial(check_propensity, file=file))


def _eval_cases(folder: Path) -> Iterator[Case]:
    notes = tuple(sorted(folder.glob("*.json")))
    for file in sorted(folder.glob("*.npz")):
        remarks = notes[0] if notes else None
        yield Case(folder.name, file.stem, (file, *notes), partial(check_eval, file=file, notes=remarks))


def _moelora_cases(folder: Path) -> Iterator[Case]:
    for file in sorted(folder.glob("*.npz")):
        yield Case(folder.name, file.stem, (file,), partial(check_moelora, file=file))


def _router_cases(folder: Path) -> Iterator[Case]:
    """Told apart by what they hold, not by what they are called."""
    for file in sorted(folder.glob("*.npz")):
        names = _names(file)
        if any(name.endswith(".user") for name in names):
            weights = _partner(file, ".safetensors")
            check = partial(check_router, io_file=file, weights_file=weights)
            yield Case(folder.name, file.stem, (file, weights), check)
        elif any(name.startswith("w.mlp_proj.") for name in names):
            yield Case(folder.name, file.stem, (file,), partial(check_projector, file=file))
        else:
            yield Case(folder.name, file.stem, (file,), partial(check_gating, file=file))


def _weighted_cases(folder: Path, check: Callable[..., None]) -> Iterator[Case]:
    for file in sorted(folder.glob("*.npz")):
        weights = file.with_suffix(".safetensors")
        yield Case(folder.name, file.stem, (file, weights), partial(check, io_file=file, weights_file=weights))


def _trace_cases(folder: Path) -> Iterator[Case]:
    mini = folder.parent / "mini_dllm2rec"
    for file in sorted(folder.glob("*.npz")):
        config, init = _partner(file, ".json"), _partner(file, ".safetensors")
        check = partial(check_train_trace, mini=mini, config_file=config, init_file=init, trace_file=file)
        yield Case(folder.name, file.stem, (config, init, file), check)


def _folder_case(folder: Path, check: Callable[..., None]) -> Iterator[Case]:
    files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
    if files:
        yield Case(folder.name, folder.name, files, partial(check, root=folder))


def _prompt_cases(folder: Path) -> Iterator[Case]:
    """Told apart by what they hold: filled templates, tokenised batches, learning rates."""
    contents = {file: set(json.loads(file.read_text(encoding="utf-8"))) for file in sorted(folder.glob("*.json"))}
    texts = [file for file, keys in contents.items() if "templates" in keys]
    for file, keys in contents.items():
        if "templates" in keys:
            yield Case(folder.name, file.stem, (file,), partial(check_prompt_text, file=file))
        elif "batches" in keys:
            model = _tokenizer_file(folder)
            own = tuple(sorted(path for path in model.parent.iterdir() if path.is_file()))
            require(bool(texts), f"{file.name} needs the samples of a file with templates beside it")
            check = partial(check_label_mask, file=file, tokenizer=model, samples=texts[0])
            yield Case(folder.name, file.stem, (file, *own), check)
        else:
            yield Case(folder.name, file.stem, (file,), partial(check_lr_schedule, file=file))


def _tokenizer_file(folder: Path) -> Path:
    models = sorted(folder.rglob("tokenizer.model"))
    require(len(models) == 1, f"{folder.name} needs one tokenizer.model, found {len(models)}")
    return models[0]


def _hit_ratio_cases(folder: Path) -> Iterator[Case]:
    for file in sorted(folder.glob("*.json")):
        yield Case(folder.name, file.stem, (file,), partial(check_hit_ratio, file=file))


FAMILIES: dict[str, Callable[[Path], Iterator[Case]]] = {
    "dllm2rec_loss": _loss_cases,
    "dllm2rec_eval": _eval_cases,
    "seqrec": partial(_weighted_cases, check=check_seqrec),
    "ilora_rec": partial(_weighted_cases, check=check_ilora_rec),
    "moelora": _moelora_cases,
    "router": _router_cases,
    "train_trace": _trace_cases,
    "mini_dllm2rec": partial(_folder_case, check=check_mini_dllm2rec),
    "mini_llara_steam": partial(_folder_case, check=check_mini_llara),
    "mini_llara_movielens": partial(_folder_case, check=check_mini_llara),
    "prompts": _prompt_cases,
    "hr1": _hit_ratio_cases,
}


def cases_of(root: Path, family: str) -> list[Case]:
    """The cases of one family; empty where its folder is missing or empty."""
    folder = root / family
    return list(FAMILIES[family](folder)) if folder.is_dir() else []


def check_coverage(root: Path, family: str) -> None:
    """Every file of the family belongs to a case."""
    claimed = {file for case in cases_of(root, family) for file in case.files}
    found = {path for path in (root / family).rglob("*") if path.is_file()}
    require(bool(claimed), f"family {family} has no case in {root}")
    require(found <= claimed, f"{family}: no check answers for {sorted(path.name for path in found - claimed)}")


def unknown_families(root: Path) -> list[str]:
    """Families that the manifest or the folder names and that no check knows."""
    listed = {name.split("/")[0] for name in json.loads((root / "MANIFEST.json").read_text(encoding="utf-8"))}
    folders = {path.name for path in root.iterdir() if path.is_dir()}
    return sorted((listed | folders) - set(FAMILIES))
