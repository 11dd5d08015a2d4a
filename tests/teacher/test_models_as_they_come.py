"""Language models as people have them: they run, or are refused before anything is trained, by name and next step."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, T5EncoderModel

from src.core.errors import AnyoError, ConfigError, ModelError
from src.student.settings import EvaluationSettings
from src.teacher import preflight
from src.teacher.backbone.llm import load_llm
from src.teacher.backbone.model_check import check_llm
from src.teacher.backbone.model_config import blueprint, context_of
from src.teacher.factory import load_teacher, save_teacher
from src.teacher.ilora_model import GatedTeacher, ILoRATeacher
from src.teacher.objective import objective_of
from src.teacher.operations import dry_run
from src.teacher.operations.dry_run import dry_run_before_training, dry_run_loaded
from src.teacher.operations.model_shape import model_shape
from src.teacher.preflight import check_prompts
from src.teacher.settings import ExportSettings, LoraSettings, PromptSettings, TeacherSettings
from src.teacher.training import train_teacher
from tests.fixtures import NUM_ITEMS, cycle_data
from tests.teacher.builders import CPU, WIDTH, encoder_of, teacher_of
from tests.teacher.test_families import ITEM_SETTINGS, WRITES, save_random
from tests.teacher.test_ilora_model import HISTORY, LENGTH
from tests.teacher.test_preflight import retitled
from tests.teacher.title_builders import save_random_causal, title_teacher_of, tokenizer

CONTEXT = 256
COMMON = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": WIDTH, "max_position_embeddings": CONTEXT}
BERT = {**COMMON, "intermediate_size": 24}
GPT = {"n_layer": 2, "n_head": 2, "n_embd": WIDTH, "n_positions": CONTEXT}
NARROW = {**BERT, "embedding_size": 8}
XLNET = {"d_model": WIDTH, "n_layer": 2, "n_head": 2, "d_inner": 24}
MPT = {"d_model": WIDTH, "n_heads": 2, "n_layers": 2, "max_seq_len": CONTEXT}
OPT_350M = {**COMMON, "ffn_dim": 24, "word_embed_proj_dim": 8}
DEBERTA = {**BERT, "relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
DEBERTA_V2 = {**DEBERTA, "share_att_key": True, "type_vocab_size": 0}
RANKS = replace(WRITES, export=ExportSettings(top_n=5, batch_size=4, beams=5))


def save(folder: Path, family: str, shape: dict[str, Any], rows: int = 0, **changes: Any) -> Path:
    """A random model of a family, with its head where it can write, and the tests' tokenizer."""
    torch.manual_seed(1)
    reader = tokenizer()
    special = {"bos_token_id": reader.bos_token_id, "eos_token_id": reader.eos_token_id, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **{**special, "vocab_size": rows or len(reader), **shape, **changes})
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    except ValueError:
        model = AutoModel.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


def of(folder: Path, settings: TeacherSettings = ITEM_SETTINGS, **changes: Any) -> TeacherSettings:
    """Settings with this model."""
    return replace(settings, llm=str(folder), **changes)


def door(settings: TeacherSettings, data: Any = None) -> None:
    """What is looked at before anything is trained, in the door's order."""
    check_llm(settings)
    objective_of(settings.objective).check_llm(settings)
    check_prompts(settings, cycle_data() if data is None else data)


def train(settings: TeacherSettings) -> GatedTeacher:
    """Through the door, and a step."""
    door(settings)
    run = train_teacher(settings, cycle_data(), encoder_of(), settings.llm, CPU, 0, EvaluationSettings(ks=(5,)))
    return run.teacher


def edit(folder: Path, **changes: Any) -> Path:
    """Other values in config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


# --------------------------------------------------------------------------------------------------- tokens and tables


def with_tokens(folder: Path, *tokens: str, **special: str) -> Path:
    """Tokens that the model's table knows nothing of."""
    reader = AutoTokenizer.from_pretrained(folder)
    reader.add_tokens(list(tokens))
    reader.add_special_tokens(special)
    reader.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("settings", [ITEM_SETTINGS, RANKS], ids=["item_ce", "title_lm"])
def test_padding_whose_token_has_no_row_takes_any_row(tmp_path: Path, settings: TeacherSettings) -> None:
    plain = save(tmp_path / "plain", "gpt2", GPT)
    beyond = with_tokens(Path(shutil.copytree(plain, tmp_path / "beyond")), pad_token="[PAD]")
    rows = blueprint(str(beyond)).get_input_embeddings().weight.shape[0]
    assert AutoTokenizer.from_pretrained(beyond).pad_token_id == rows
    teacher = train(of(beyond, settings))
    assert teacher.prompts.pad_id == 0
    if isinstance(teacher, ILoRATeacher):
        padded, known = (teacher_of(folder, of(folder))(HISTORY, LENGTH).logits for folder in (beyond, plain))
        assert torch.equal(padded, known)


@pytest.mark.parametrize("settings", [ITEM_SETTINGS, RANKS], ids=["item_ce", "title_lm"])
def test_added_tokens_without_rows_are_refused_where_a_title_uses_one(
    tmp_path: Path, settings: TeacherSettings
) -> None:
    folder = with_tokens(save(tmp_path, "gpt2", GPT), "Zyx")
    door(of(folder, settings))
    data = retitled(cycle_data(), 3, "Zyx rises")
    with pytest.raises(ConfigError, match=r"knows 1 tokens that its table of \d+ rows has no row for \('Zyx'\) → call"):
        door(of(folder, settings), data)


@pytest.mark.parametrize("beyond", [0, 10**9])
@pytest.mark.parametrize("more", [0, 1])
def test_a_padding_token_beyond_the_configs_table_is_none(tmp_path: Path, beyond: int, more: int) -> None:
    """As of LLaMA with `pad_token_id` 32000: the table has 32,000 rows, or one more than config.json says."""
    folder = save_random_causal(tmp_path)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    if more:
        weights = load_file(folder / "model.safetensors")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in weights:
                weights[name] = torch.cat([weights[name], weights[name][:more]])
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder, pad_token_id=rows + beyond)
    train(of(folder, ITEM_SETTINGS))


def test_the_table_in_the_files_counts_not_the_config(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama", {**BERT, "num_key_value_heads": 1, "tie_word_embeddings": False}, rows=448)
    edit(folder, vocab_size=400)
    for settings in (ITEM_SETTINGS, RANKS):
        teacher = train(of(folder, settings))
        assert teacher.llm.get_base_model().get_input_embeddings().weight.shape[0] == 448
    edit(folder, vocab_size=448, intermediate_size=32)
    with pytest.raises(ModelError, match=r"not those of its config.json \(layers.0.mlp.*\[.*24.*\] in the files"):
        check_llm(of(folder))


# --------------------------------------------------------------------------------------------------- limits and widths


@pytest.mark.parametrize(
    ("family", "shape", "limit"),
    [
        ("roberta", {**BERT, "max_position_embeddings": 66, "pad_token_id": 1}, 64),
        ("camembert", {**BERT, "max_position_embeddings": 70, "pad_token_id": 3}, 66),
        ("mpnet", {**BERT, "max_position_embeddings": 66, "pad_token_id": 1}, 64),
        ("opt", {**OPT_350M, "max_position_embeddings": 64, "pad_token_id": 1}, 64),
        ("bert", {**BERT, "max_position_embeddings": 64}, 64),
        ("gpt2", {**GPT, "n_positions": 64}, 64),
        ("gptj", {**GPT, "n_positions": 64, "rotary_dim": 4}, 64),
        (
            "distilbert",
            {"dim": WIDTH, "n_layers": 1, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64},
            64,
        ),
        ("mpt", {**MPT, "max_seq_len": 64}, 64),
        ("xlnet", XLNET, None),
        ("bloom", {"n_layer": 1, "n_head": 2, "hidden_size": WIDTH}, None),
    ],
)
def test_the_most_tokens_that_a_model_reads(tmp_path: Path, family: str, shape: Any, limit: int | None) -> None:
    folder = save(tmp_path, family, shape)
    assert context_of(blueprint(str(folder))) == limit
    longest = limit or 160
    language = load_llm(str(folder), "auto", CPU)
    dry_run.require_length(of(folder, prompt=PromptSettings(max_tokens=longest)), language)
    check_llm(of(folder, prompt=PromptSettings(max_tokens=longest)))
    if limit is not None:
        with pytest.raises(ModelError, match=f"reads {limit} tokens at most → lower it"):
            check_llm(of(folder, prompt=PromptSettings(max_tokens=limit + 1)))


def test_a_limit_that_no_config_names_is_found_by_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path, "gpt2", {**GPT, "n_positions": 87})
    monkeypatch.setattr(preflight, "context_of", lambda model: None)
    with pytest.raises(ConfigError, match="max_tokens = 160: .* reads 87 tokens at most, as tried out → lower it"):
        check_prompts(of(folder), cycle_data())


@pytest.mark.parametrize(
    ("family", "shape", "width"),
    [("opt", OPT_350M, 8), ("electra", NARROW, WIDTH), ("albert", NARROW, WIDTH), ("distilbert", None, WIDTH)],
)
def test_tables_of_another_width_than_the_states_are_written_into(
    tmp_path: Path, family: str, shape: Any, width: int
) -> None:
    folder = save(tmp_path, family, shape or {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 24})
    teacher = train(of(folder))
    assert isinstance(teacher, ILoRATeacher)
    language = teacher.language
    assert (language.embedding_size, language.hidden_size) == (8 if shape else WIDTH, width)
    assert (teacher.projector.outer.out_features, teacher.head.in_features) == (language.embedding_size, width)
    shape_found = model_shape(blueprint(str(folder)), ITEM_SETTINGS.lora)
    assert (shape_found.embedding, shape_found.width) == (language.embedding_size, width)
    save_teacher(tmp_path / "teacher", teacher, cycle_data(), {})
    again = load_teacher(tmp_path / "teacher", teacher.settings, cycle_data(), CPU)
    assert torch.equal(again(HISTORY, LENGTH).logits, teacher(HISTORY, LENGTH).logits)


@pytest.mark.parametrize("shape", [OPT_350M, {**OPT_350M, "word_embed_proj_dim": WIDTH}], ids=["350m", "125m"])
@pytest.mark.parametrize("ranking", ["constrained", "grounded"])
def test_an_opt_that_writes_also_ranks(tmp_path: Path, shape: Any, ranking: Any) -> None:
    settings = of(save(tmp_path, "opt", shape), RANKS, export=replace(RANKS.export, ranking=ranking))
    trained = objective_of("title_lm").trained(train(settings), settings, 0)
    found = trained.ranking(cycle_data().validation, EvaluationSettings(ks=(5,)))
    assert found.top.shape == (len(cycle_data().validation), NUM_ITEMS)
    labels = trained.labeller().label(cycle_data().train)
    assert labels.sequence_embedding.shape[1] == shape["word_embed_proj_dim"]


# ------------------------------------------------------------------------------------------------------------ families


def t5_encoder(folder: Path) -> Path:
    """Half of an encoder-decoder, as sentence encoders are saved."""
    reader = tokenizer()
    sizes = {"d_model": WIDTH, "d_ff": 24, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(AutoConfig.for_model("t5", vocab_size=len(reader), **sizes)).save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


BART = {
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (t5_encoder, "t5 is an encoder-decoder family → choose a decoder or an encoder"),
        (lambda folder: save(folder, "bart", BART), "bart is an encoder-decoder family"),
        (
            lambda folder: save(folder, "mamba", {"hidden_size": WIDTH, "num_hidden_layers": 1}),
            "mamba has no attention",
        ),
        (lambda folder: save(folder, "rwkv", {"hidden_size": WIDTH, "num_hidden_layers": 2}), "rwkv has no attention"),
    ],
)
@pytest.mark.parametrize("layers", [("auto",), ("in_proj", "x_proj")])
def test_families_that_cannot_read_a_history_are_refused(
    tmp_path: Path, make: Callable[[Path], Path], rule: str, layers: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError, match=rule):
        door(of(make(tmp_path), lora=LoraSettings(rank=8, experts=4, target_modules=layers)))


@pytest.mark.parametrize(("family", "shape"), [("deberta-v2", DEBERTA_V2), ("deberta", DEBERTA)])
def test_layers_that_run_over_no_sequence_are_named_and_the_others_can_be_adapted(
    tmp_path: Path, family: str, shape: Any
) -> None:
    folder = save(tmp_path, family, shape)
    with pytest.raises(ConfigError, match=r"also runs over what is no sequence: .* such as \[(.*)\]") as caught:
        door(of(folder))
    (problem,) = caught.value.problems
    assert problem.field == "teacher.lora.target_modules"
    named = tuple(problem.next_step.rpartition("[")[2].rstrip("]").split(","))
    assert not {name.rsplit(".", 1)[-1] for name in problem.value} & set(named)  # type: ignore[attr-defined]
    train(of(folder, lora=LoraSettings(rank=8, experts=4, target_modules=named)))


@pytest.mark.parametrize(("family", "shape"), [("xlnet", XLNET), ("longformer", {**BERT, "attention_window": 8})])
def test_layers_with_tokens_first_are_gated_by_their_sequence(tmp_path: Path, family: str, shape: Any) -> None:
    """Also where a batch has as many sequences as tokens, which no shape tells apart."""
    teacher = teacher_of(save(tmp_path, family, shape))
    assert not teacher.language.is_decoder, "it reads both ways"
    torch.manual_seed(5)
    width = int(teacher.prompts(HISTORY, LENGTH).token_ids.shape[1])
    batch = torch.randn(width, width, teacher.language.embedding_size)
    gates = torch.randn(width, 4).mul(5).softmax(dim=1)
    with torch.no_grad():
        with teacher.scope(gates):
            together = teacher.llm(inputs_embeds=batch).last_hidden_state
        for row in (0, width - 1):
            with teacher.scope(gates[row : row + 1]):
                alone = teacher.llm(inputs_embeds=batch[row : row + 1]).last_hidden_state[0]
            torch.testing.assert_close(together[row], alone, rtol=1e-3, atol=1e-3)
            with teacher.scope(gates[row - 1 :][:1]):
                other = teacher.llm(inputs_embeds=batch[row : row + 1]).last_hidden_state[0]
            assert (other - alone).abs().max() > 1e-2


def test_a_family_that_reads_both_ways_writes_nothing(tmp_path: Path) -> None:
    folder = save(tmp_path, "xlnet", XLNET)
    train(of(folder))
    with pytest.raises(ConfigError, match="is an encoder; title_lm writes titles"):
        door(of(folder, RANKS))


def test_a_decoder_family_that_was_made_to_look_both_ways_is_no_decoder(tmp_path: Path) -> None:
    shape = {**BERT, "num_key_value_heads": 1, "head_dim": 8}
    folder = save(tmp_path, "gemma3_text", shape)
    assert load_llm(str(folder), "auto", CPU).is_decoder
    assert not load_llm(str(edit(folder, use_bidirectional_attention=True)), "auto", CPU).is_decoder


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "bloom", "gemma2", "falcon", "mpt", "bert"])
def test_a_decoder_that_is_padded_on_the_right_says_the_same_without_a_mask(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"falcon": {**COMMON, "alibi": True}, "mpt": MPT}
    folder = save(tmp_path, family, others[family]) if family in others else save_random(tmp_path, family)
    teacher = teacher_of(folder)
    masks = list[bool]()
    teacher.llm.get_base_model().register_forward_pre_hook(
        lambda module, given, named: masks.append(named["attention_mask"] is not None), with_kwargs=True
    )
    assert len(set(teacher.prompts.token_counts(HISTORY, LENGTH).tolist())) > 1, "something is padded"
    with torch.no_grad():
        found, items = teacher(HISTORY, LENGTH), teacher.embed_items(4)
        assert set(masks) == {family == "bert"}
        monkeypatch.setattr(GatedTeacher, "_needed", lambda self, mask: mask)
        masked, masked_items = teacher(HISTORY, LENGTH), teacher.embed_items(4)
    torch.testing.assert_close(found.logits, masked.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(items, masked_items, rtol=1e-4, atol=1e-4)


def test_cudnns_attention_is_off_where_a_model_is_loaded(llama: Path) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_llm(str(llama), "auto", CPU)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


# ------------------------------------------------------------------------------------------------------------- folders

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 7\n"


def adapter(folder: Path) -> None:
    """Nothing but an adapter."""
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "meta-llama/Llama-2-7b-hf"}')


def own_code(folder: Path) -> None:
    """A family that only code in the folder knows."""
    edit(folder, model_type="chatglm", auto_map={"AutoConfig": "configuration_chatglm.ChatGLMConfig"})
    text = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass ChatGLMConfig: pass\n"
    (folder / "configuration_chatglm.py").write_text(text)


def shards(folder: Path) -> None:
    """An index that names a file which is not there."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = load_file(folder / "model-00001-of-00002.safetensors")
    index = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    index[next(iter(index))] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def infinite(folder: Path) -> None:
    """float16 overflows beyond 65,504."""
    weights = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def moved_into(*inner: str) -> Callable[[Path], object]:
    """The model in a folder further in."""

    def move(folder: Path) -> None:
        files = [file for file in folder.iterdir() if file.is_file()]
        folder.joinpath(*inner).mkdir(parents=True)
        for file in files:
            file.rename(folder.joinpath(*inner, file.name))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')

    return move


def only(*names: str) -> Callable[[Path], object]:
    """Files of these names, and nothing else."""

    def replace_all(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        for name in names:
            (folder / name).write_bytes(b"weights")

    return replace_all


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


def pickled(folder: Path) -> None:
    """Weights of the older format with something beside numbers in them."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "more": _Evil()}, folder / "pytorch_model.bin")


def write(name: str, content: str) -> Callable[[Path], object]:
    """A file with this content."""
    return lambda folder: (folder / name).write_text(content)


def number(key: str, value: Any) -> Callable[[Path], object]:
    """Another number in config.json."""
    return lambda folder: edit(folder, **{key: value})


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (adapter, "of an adapter .* → name its base model, meta-llama/Llama-2-7b-hf, or merge"),
        (write("model.safetensors", POINTER), "model.safetensors: Git LFS pointers.* → run `git lfs install` and `git"),
        (write("tokenizer.json", POINTER), "tokenizer.json: Git LFS pointers"),
        (own_code, r"chatglm needs code of its own \(auto_map\), and such code is not run here → choose"),
        (shards, r"weights are missing \(model-00002-of-00002.safetensors\)"),
        (write("model.safetensors.index.json", "[]"), None),
        (
            moved_into("0_Transformer"),
            r"has no config.json → the model lies further in: teacher.llm=\S+/0_Transformer$",
        ),
        (moved_into("snapshots", "0a1b"), r"the model lies further in: teacher.llm=\S+/snapshots/0a1b$"),
        (only("model-q4.gguf"), r"its weights are in another form, llama.cpp's \(GGUF\) → name the folder of the same"),
        (only("consolidated.00.pth", "params.json"), "its weights are in another form, its makers' own"),
        (only(), "has no config.json → name a folder with config.json"),
        (
            pickled,
            "its weights hold code beside numbers, which is not run, or are damaged → get the model as safetensors",
        ),
        (infinite, r"not finite \(layers.1.mlp.up_proj.weight\) → copy the model again"),
        (write("config.json", "[]"), "config.json cannot be read .it holds a list, not an object"),
        (write("config.json", "not json"), "config.json cannot be read"),
        (write("config.json", "null"), "config.json cannot be read"),
        (write("config.json", "{}"), "config.json cannot be read"),
        (write("config.json", '{"model_type": "llama"'), "config.json cannot be read"),
        (write("config.json", "[" * 100_000), "config.json cannot be read"),
        (number("model_type", 7), "config.json cannot be read"),
        (
            number("num_hidden_layers", 10**9),
            "num_hidden_layers = 1000000000; it must be a whole number from 1 to 2,000",
        ),
        (number("num_hidden_layers", 0), "num_hidden_layers = 0"),
        (number("num_hidden_layers", -3), "num_hidden_layers = -3"),
        (number("num_attention_heads", 0), "config.json"),
        (number("num_key_value_heads", 0), "config.json"),
        (number("hidden_size", 10**15), "config.json"),
        (number("hidden_size", 17), "config.json"),
        (number("hidden_size", "wide"), "config.json"),
        (number("hidden_size", None), "config.json|no model of text"),
        (number("vocab_size", 10**12), "config.json"),
        (number("vocab_size", -1), "config.json"),
        (number("max_position_embeddings", 12), "reads 12 tokens at most"),
        (number("hidden_act", "no such function"), "config.json"),
        (number("rope_parameters", []), None),
        (lambda folder: [file.unlink() for file in folder.glob("token*")], "its tokenizer"),
        (write("tokenizer.json", "[]"), "its tokenizer"),
        (write("tokenizer_config.json", "[]"), "its tokenizer"),
        (write("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["own.Own", null]}}'), None),
    ],
)
def test_damaged_and_foreign_folders(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
    rule: str | None,
) -> None:
    """``rule`` None: whether it runs or is refused in words, there is no traceback."""

    def asked(*question: object) -> str:
        raise AssertionError(f"somebody was asked: {question}")

    monkeypatch.setattr(builtins, "input", asked)
    folder = save_random_causal(tmp_path)
    damage(folder)
    if rule is None:
        with suppress(AnyoError):
            door(of(folder, RANKS))
        return
    with pytest.raises(AnyoError, match=rule):
        door(of(folder, RANKS))
    assert not (folder / "ran").exists()


def test_weights_of_the_older_format_alone_are_read(tmp_path: Path) -> None:
    folder = save_random_causal(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for settings in (ITEM_SETTINGS, RANKS):
        train(of(folder, settings))


def test_a_tokenizer_without_padding_and_end_is_enough(tmp_path: Path) -> None:
    folder = save_random_causal(tmp_path)
    file = folder / "tokenizer_config.json"
    kept = {key: value for key, value in json.loads(file.read_text()).items() if not key.endswith("_token")}
    file.write_text(json.dumps(kept))
    reader = AutoTokenizer.from_pretrained(folder)
    assert (reader.pad_token_id, reader.eos_token_id) == (None, None)
    for settings in (ITEM_SETTINGS, RANKS):
        train(of(folder, settings))


# --------------------------------------------------------------------------------------------------------- the dry run


@pytest.mark.parametrize("writes", [False, True])
def test_a_rehearsal_leaves_everything_as_it_was(tmp_path: Path, writes: bool) -> None:
    folder = save_random_causal(tmp_path)
    teacher: GatedTeacher = title_teacher_of(folder, RANKS) if writes else teacher_of(folder)
    teacher.train()
    before, stream = {k: v.clone() for k, v in teacher.state_dict().items()}, torch.get_rng_state()
    dry_run_loaded(teacher, HISTORY, LENGTH, torch.tensor([3, 4, 5]))
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert teacher.training
    dry_run_before_training(of(folder), cycle_data())
    assert torch.equal(torch.get_rng_state(), stream)


def test_states_that_are_not_numbers_are_refused_before_a_step(llama: Path) -> None:
    teacher = teacher_of(llama)
    with torch.no_grad():
        next(iter(teacher.parameter_groups()["experts"])).fill_(float("nan"))
    with pytest.raises(ModelError, match="its states are not finite in float32"):
        dry_run_loaded(teacher, HISTORY, LENGTH, torch.tensor([3, 4, 5]))


def test_layers_that_fail_are_told_by_the_models_name(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = teacher_of(llama)

    def fail(*given: object, **named: object) -> None:
        raise KeyError("a layer of its own kind")

    monkeypatch.setattr(teacher.llm.get_base_model().layers[1], "forward", fail)
    with pytest.raises(
        ModelError, match=r"a pass through its layers fails \(KeyError: .*own kind.* → choose a model of"
    ):
        dry_run_loaded(teacher, HISTORY, LENGTH, torch.tensor([3, 4, 5]))


def test_no_memory_for_a_rehearsal_is_no_reason_to_refuse(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 14 GiB")

    monkeypatch.setattr(ILoRATeacher, "forward", full)
    dry_run_loaded(teacher_of(llama), HISTORY, LENGTH, torch.tensor([3, 4, 5]))


def test_of_a_large_model_the_first_layers_are_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_random_causal(tmp_path, num_hidden_layers=5)
    monkeypatch.setattr(dry_run, "_WHOLE_MODEL", 1)
    seen = list[int]()
    kept = dry_run.load_llm

    def watched(*given: Any, **named: Any) -> Any:
        language = kept(*given, **named)
        seen.append(len(language.model.layers))
        return language

    monkeypatch.setattr(dry_run, "load_llm", watched)
    for settings in (ITEM_SETTINGS, RANKS):
        door(of(folder, settings))
    assert seen == [2, 2]
    assert len(load_llm(str(folder), "auto", CPU).model.layers) == 5
