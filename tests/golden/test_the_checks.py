"""The golden checks must be able to fail: a corrupted value, a missing family, an empty folder, an unchecked array."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import GOLDEN_VECTORS
from tests.golden.families import FAMILIES, cases_of, check_coverage, unknown_families
from tests.golden.sources import GoldenMismatch, check_integrity, read_manifest

pytest_plugins = ["pytester"]


def seal(root: Path, name: str) -> None:
    """Write a changed file's size, sha256 and arrays into the manifest, as a careful forger would."""
    manifest, content = read_manifest(root), (root / name).read_bytes()
    entry: dict[str, Any] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if name.endswith(".npz"):
        with np.load(root / name) as arrays:
            entry["arrays"] = {key: str(arrays[key].shape) for key in arrays.files}
    (root / "MANIFEST.json").write_text(json.dumps({**manifest, name: entry}), encoding="utf-8")


def rewrite(root: Path, name: str, change: Callable[[dict[str, NDArray[Any]]], None]) -> None:
    """Change the arrays of a file and seal it."""
    with np.load(root / name) as arrays:
        content = {key: np.array(arrays[key]) for key in arrays.files}
    change(content)
    arguments: dict[str, Any] = dict(content)
    np.savez(root / name, **arguments)
    seal(root, name)


def nudge(array: NDArray[Any]) -> NDArray[Any]:
    """The array with its last element off by a twentieth of its size (an integer: by one)."""
    flat = array.copy().reshape(-1)
    flat[-1] += 1 if np.issubdtype(flat.dtype, np.integer) else 0.05 * max(1.0, abs(float(flat[-1])))
    return flat.reshape(array.shape)


def run_family(root: Path, family: str) -> None:
    """Everything that test_golden.py does for one family."""
    check_integrity(root, family)
    check_coverage(root, family)
    for case in cases_of(root, family):
        case.run()


@pytest.fixture
def copy_family(tmp_path: Path) -> Callable[..., Path]:
    """``copy_family("router")``: a folder with these families and the manifest."""

    def copy(*families: str) -> Path:
        root = tmp_path / "vectors"
        root.mkdir()
        shutil.copy(GOLDEN_VECTORS / "MANIFEST.json", root)
        for family in families:
            shutil.copytree(GOLDEN_VECTORS / family, root / family)
        return root

    return copy


#: one expected result of every kind: (file, array)
RESULTS = [
    ("dllm2rec_loss/default.npz", "in.ps"),
    ("dllm2rec_loss/default.npz", "f64.bce"),
    ("dllm2rec_loss/default.npz", "f32.dro_per_sample"),
    ("dllm2rec_loss/default.npz", "f64.weight_common"),
    ("dllm2rec_loss/default.npz", "f64.rd_terms_reference"),
    ("dllm2rec_loss/default.npz", "f32.grad_loss_all_intended"),
    ("dllm2rec_loss/default.npz", "combo.f32.loss_all"),
    ("dllm2rec_loss/default.npz", "beta.f64.dro_per_sample"),
    ("dllm2rec_loss/lam0.npz", "combo.f64.loss_all_intended"),
    ("dllm2rec_eval/eval.npz", "random.rank"),
    ("dllm2rec_eval/eval.npz", "fewer_items_than_k.ndcg"),
    ("dllm2rec_eval/eval.npz", "no_hit.hr"),
    ("seqrec/sasrec_a.npz", "f64.logits"),
    ("seqrec/sasrec_batch1.npz", "f32.logits_llm"),
    ("seqrec/caser_b.npz", "in.llm_emb"),
    ("seqrec/gru_edge_len0.npz", "f64.logits_llm"),
    ("seqrec/gru_a.npz", "hp.ed_weight"),
    ("ilora_rec/sasrec_b.npz", "f64.user_vector_batch1"),
    ("ilora_rec/sasrec_b.npz", "f32.item_vector"),
    ("moelora/default_r8_n4.npz", "f64.y.unnormalised"),
    ("moelora/default_r8_n4.npz", "f32.grad_gate.softmax"),
    ("moelora/default_r8_n4.npz", "bf16.y_as_f32.softmax"),
    ("moelora/bias_r16_n4.npz", "f64.merged_weight_reference"),
    ("moelora/bias_r16_n4.npz", "out.scaling"),
    ("moelora/bias_r16_n4.npz", "init.lora_B"),
    ("moelora/batch1.npz", "f64.y.adapters_disabled"),
    ("router/router_io.npz", "batch5.f32.grad_train.gate.fc.weight"),
    ("router/router_io.npz", "batch1.f64.after_train.bn1.running_var"),
    ("router/router_io.npz", "batch1.f64.after_train.bn1.num_batches_tracked"),
    ("router/router_io.npz", "batch1.f64.not_reference_gate_on_raw_user"),
    ("router/gating.npz", "MLP_noise.x3d.f64.out"),
    ("router/gating.npz", "topK.x2d.f32.out_k3"),
    ("router/projector.npz", "f64.y"),
    ("train_trace/trace.npz", "f32.bce"),
    ("train_trace/trace.npz", "final.fc_4096_64.bias"),
    ("train_trace/trace.npz", "test.ndcg"),
]


@pytest.mark.parametrize(("file", "array"), RESULTS, ids=[f"{file}-{array}" for file, array in RESULTS])
def test_a_corrupted_result_fails_even_under_a_forged_manifest(
    copy_family: Callable[..., Path], file: str, array: str
) -> None:
    family = file.split("/")[0]
    root = copy_family(family, *(["mini_dllm2rec"] if family == "train_trace" else []))

    def corrupt(arrays: dict[str, NDArray[Any]]) -> None:
        arrays[array] = nudge(arrays[array])

    rewrite(root, file, corrupt)
    check_integrity(root, family)  # the forgery passes here
    (case,) = [case for case in cases_of(root, family) if root / file in case.files]
    with pytest.raises(GoldenMismatch):
        case.run()


def test_a_flipped_byte_fails_by_its_checksum(copy_family: Callable[..., Path]) -> None:
    root = copy_family("seqrec")
    file = root / "seqrec" / "gru_a.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(GoldenMismatch, match="sha256"):
        check_integrity(root, "seqrec")


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("mini_dllm2rec/expected.json", "n_train", 299),
        ("mini_dllm2rec/expected.json", "teacher_hit_at_10", 0.5),
        ("mini_llara_steam/expected_loader.json", "padding_item_id", 59),
    ],
)
def test_a_corrupted_fact_fails(copy_family: Callable[..., Path], file: str, key: str, value: object) -> None:
    family = file.split("/")[0]
    root = copy_family(family)
    content = json.loads((root / file).read_text(encoding="utf-8"))
    (root / file).write_text(json.dumps({**content, key: value}), encoding="utf-8")
    seal(root, file)
    with pytest.raises(GoldenMismatch, match=key):
        run_family(root, family)


def test_a_corrupted_title_row_fails(copy_family: Callable[..., Path]) -> None:
    file = "mini_llara_movielens/expected_loader.json"
    root = copy_family("mini_llara_movielens")
    content = json.loads((root / file).read_text(encoding="utf-8"))
    content["rows"]["test"][-1]["seq_title"][0] = "Another Title"
    (root / file).write_text(json.dumps(content), encoding="utf-8")
    seal(root, file)
    with pytest.raises(GoldenMismatch, match="Another Title"):
        run_family(root, "mini_llara_movielens")


def test_an_array_that_no_check_knows_fails(copy_family: Callable[..., Path]) -> None:
    root = copy_family("dllm2rec_loss")
    rewrite(root, "dllm2rec_loss/default.npz", lambda arrays: arrays.update({"f64.new_term": np.zeros(3)}))
    with pytest.raises(GoldenMismatch, match=r"nobody checked .*f64\.new_term"):
        run_family(root, "dllm2rec_loss")


def test_a_result_that_is_gone_fails(copy_family: Callable[..., Path]) -> None:
    root = copy_family("dllm2rec_loss")

    def remove(arrays: dict[str, NDArray[Any]]) -> None:
        del arrays["f64.bce"]

    rewrite(root, "dllm2rec_loss/default.npz", remove)
    with pytest.raises(GoldenMismatch, match=r"has no array f64\.bce"):
        run_family(root, "dllm2rec_loss")


def test_a_file_that_no_check_knows_fails(copy_family: Callable[..., Path]) -> None:
    root = copy_family("seqrec")
    (root / "seqrec" / "notes.csv").write_text("a,b\n", encoding="utf-8")
    with pytest.raises(GoldenMismatch, match="disagree"):
        check_integrity(root, "seqrec")
    seal(root, "seqrec/notes.csv")
    with pytest.raises(GoldenMismatch, match="no check answers for"):
        run_family(root, "seqrec")


def test_a_file_that_the_manifest_lists_and_the_folder_lacks_fails(copy_family: Callable[..., Path]) -> None:
    root = copy_family("seqrec")
    (root / "seqrec" / "gru_a.npz").unlink()
    with pytest.raises(GoldenMismatch, match="gru_a"):
        check_integrity(root, "seqrec")


def test_a_family_that_nobody_checks_is_reported(copy_family: Callable[..., Path]) -> None:
    root = copy_family("seqrec")
    (root / "hr1").mkdir()
    assert unknown_families(root) == []
    (root / "new_family").mkdir()
    assert unknown_families(root) == ["new_family"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_or_empty_family_fails(copy_family: Callable[..., Path], family: str) -> None:
    root = copy_family()
    with pytest.raises(GoldenMismatch, match="missing"):
        check_integrity(root, family)
    (root / family).mkdir()
    with pytest.raises(GoldenMismatch, match="empty"):
        check_integrity(root, family)
    with pytest.raises(GoldenMismatch, match="no case"):
        check_coverage(root, family)


def test_other_names_and_fewer_arrays_of_the_same_schema_pass(copy_family: Callable[..., Path]) -> None:
    """Held-back vectors carry other names; optional arrays may be absent."""
    root = copy_family("router", "seqrec", "moelora")
    folder = root / "router"
    for old, new in (
        ("router_io.npz", "net_b_io.npz"),
        ("router.safetensors", "net_b.safetensors"),
        ("gating.npz", "g2.npz"),
    ):
        (folder / old).rename(folder / new)
    (root / "seqrec" / "gru_a.npz").rename(root / "seqrec" / "other.npz")
    (root / "seqrec" / "gru_a.safetensors").rename(root / "seqrec" / "other.safetensors")

    def fewer(arrays: dict[str, NDArray[Any]]) -> None:
        for name in [name for name in arrays if name.endswith((".softmax", ".grad_x.ones"))]:
            del arrays[name]

    rewrite(root, "moelora/default_r8_n4.npz", fewer)
    for family in ("router", "seqrec", "moelora"):
        check_coverage(root, family)
        for case in cases_of(root, family):
            case.run()


@pytest.mark.nightly
def test_pytest_itself_fails_on_an_empty_folder(pytester: pytest.Pytester) -> None:
    """The command line of README.md, once for real."""
    empty = pytester.mkdir("empty")
    tests = Path(__file__).parent / "test_golden.py"
    result = pytester.runpytest_subprocess(
        tests, f"--golden-dir={empty}", f"--rootdir={tests.parents[2]}", "-c", str(tests.parents[2] / "pyproject.toml"),
        "-p", "no:cacheprovider", "-p", "no:xdist",
    )  # fmt: skip
    result.assert_outcomes(failed=1 + len(FAMILIES), skipped=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
