"""Checkpoint folders: ours, the origin's, Hugging Face's; and every way in which one can be bad."""

import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demiurgic import DemiurgicConfig, DemiurgicForCausalLM, DemiurgicModel

TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
IDS = torch.arange(2, 26).view(2, 12)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def model_of(**changes):
    return DemiurgicForCausalLM(DemiurgicConfig(**(TINY | changes))).eval()


@torch.no_grad()
def same_logits(one, other):
    return torch.equal(one(IDS).logits, other(IDS).logits)


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB", 1])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 2},
        {"activation_function": "gelu", "attention_bias": True},
        {"attention_head_dim": 16, "mlp_bias": True, "rope_scaling": YARN, "eos_token_id": [2, 3]},
    ],
)
def test_round_trip(tmp_path, changes, max_shard_size):
    model = model_of(**changes).train()
    model.save_pretrained(tmp_path / "made" / "here", max_shard_size=max_shard_size)
    random_state = torch.get_rng_state()
    loaded = DemiurgicForCausalLM.from_pretrained(str(tmp_path / "made" / "here"))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert loaded.config == model.config and same_logits(loaded, model.eval())
    assert not loaded.training and all(p.requires_grad and p.is_contiguous() for p in loaded.parameters())
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == model.config.tie_word_embeddings
    assert not list((tmp_path / "made" / "here").glob(".*"))


def test_shards_stay_below_the_size_and_the_index_lists_them(tmp_path):
    model = model_of(tie_word_embeddings=True)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert [path.name for path in shards] == [
        f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)
    ]
    assert len(shards) > 1
    stored = {name: (path.name, tensor) for path in shards for name, tensor in load_file(path).items()}
    assert index["weight_map"] == {name: file for name, (file, _) in stored.items()}
    assert index["metadata"]["total_size"] == model.num_parameters() * 4
    for path in shards:
        assert sum(tensor.nbytes for tensor in load_file(path).values()) <= 20_000
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("sizes", [("5GB", "20KB"), ("20KB", "5GB"), ("20KB", "40KB"), ("5GB", "5GB")])
def test_saving_again_replaces_the_older_checkpoint(tmp_path, sizes):
    model_of().save_pretrained(tmp_path, max_shard_size=sizes[0])
    model = model_of(num_hidden_layers=3)
    model.save_pretrained(tmp_path, max_shard_size=sizes[1])
    assert same_logits(DemiurgicForCausalLM.from_pretrained(tmp_path), model)
    once = tmp_path / "once"
    model.save_pretrained(once, max_shard_size=sizes[1])
    assert {path.name for path in tmp_path.iterdir()} - {"once"} == {path.name for path in once.iterdir()}


def test_a_failed_save_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    model = model_of()
    model.save_pretrained(tmp_path)

    def fill_the_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("demiurgic.checkpoint.save_file", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        model_of().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert same_logits(DemiurgicForCausalLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    "spoil, error, words",
    [
        (
            lambda model: setattr(model.config, "num_hidden_layers", 3),
            RuntimeError,
            "missing: model.layers.2",
        ),
        (lambda model: setattr(model.config, "vocab_size", 62), RuntimeError, "[61, 32] instead of [62, 32]"),
        (
            lambda model: model.register_parameter("extra", model.lm_head.weight),
            RuntimeError,
            "unexpected: extra",
        ),
        (lambda model: setattr(model.config, "rope_theta", -1.0), ValueError, "rope_theta"),
        (lambda model: model.to("meta"), RuntimeError, "meta device"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, spoil, error, words):
    model = model_of()
    spoil(model)
    with pytest.raises(error, match=re.escape(words)):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("size", ["", "5XB", "-1", 0, "MB", None, 1.5e300 * 1e300, True])
def test_shard_sizes_that_say_nothing_are_refused(tmp_path, size):
    with pytest.raises(ValueError, match="max_shard_size must be"):
        model_of().save_pretrained(tmp_path, max_shard_size=size)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        model_of().save_pretrained(tmp_path / "file")


@pytest.mark.parametrize(
    "stored, asked, expected",
    [
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
        (torch.float32, "torch.float16", torch.float16),
    ],
)
def test_dtype(tmp_path, stored, asked, expected):
    model = model_of().to(stored)
    model.save_pretrained(tmp_path)
    loaded = DemiurgicForCausalLM.from_pretrained(tmp_path, dtype=asked)
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    assert same_logits(loaded, model.to(expected))


@pytest.mark.parametrize("dtype", [torch.int64, "int8", "half a byte", torch.float8_e4m3fn, 16])
def test_dtypes_that_hold_no_weights_are_refused(tmp_path, dtype):
    model_of().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="dtype must be"):
        DemiurgicForCausalLM.from_pretrained(tmp_path, dtype=dtype)


def test_device(tmp_path):
    model_of().save_pretrained(tmp_path)
    assert DemiurgicForCausalLM.from_pretrained(tmp_path, device="cpu").lm_head.weight.device.type == "cpu"
    assert DemiurgicForCausalLM.from_pretrained(tmp_path, device="meta").lm_head.weight.is_meta
    with torch.device("meta"):
        assert DemiurgicForCausalLM.from_pretrained(tmp_path).lm_head.weight.is_meta
        assert DemiurgicForCausalLM.from_pretrained(tmp_path, device="cpu").lm_head.weight.device.type == "cpu"
    with pytest.raises(TypeError, match="torch_dtype"):
        DemiurgicForCausalLM.from_pretrained(tmp_path, torch_dtype=torch.float32)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_live_weights_do_not_hang_on_the_file(tmp_path, file):
    model = model_of()
    model.save_pretrained(tmp_path)
    if file.endswith(".bin"):
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / file)
    loaded = DemiurgicForCausalLM.from_pretrained(tmp_path)
    size = (tmp_path / file).stat().st_size
    with (tmp_path / file).open("r+b") as opened:
        opened.write(b"\0" * size)
    assert same_logits(loaded, model)


# The origin's folders


def origin_folder(path, model, *, legacy=False, shards=1):
    """What the origin's save_pretrained writes (or, in shards, what users split)."""
    state = {
        re.sub(r"\.mlp\.(?=\w+_proj)", ".mlp.swiglu.", name): tensor for name, tensor in model.state_dict().items()
    }
    path.mkdir()
    (path / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2))
    names, options = list(state), {"_use_new_zipfile_serialization": not legacy}
    if shards == 1:
        torch.save(state, path / "pytorch_model.bin", **options)
        return path
    files = {name: f"pytorch_model-{i % shards:05}.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in names if files[name] == file}, path / file, **options)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    return path


@pytest.mark.parametrize("options", [{}, {"legacy": True}, {"shards": 3}])
@pytest.mark.parametrize("changes", [{}, {"activation_function": "silu"}, {"tie_word_embeddings": True}])
def test_folders_of_the_origin(tmp_path, changes, options):
    model = model_of(**changes)
    folder = origin_folder(tmp_path / "origin", model, **options)
    loaded = DemiurgicForCausalLM.from_pretrained(folder)
    assert loaded.config == model.config and same_logits(loaded, model)


def test_a_decoder_alone_reads_and_writes_folders_too(tmp_path):
    model = model_of()
    model.save_pretrained(tmp_path / "whole")
    decoder = DemiurgicModel.from_pretrained(tmp_path / "whole")
    assert torch.equal(decoder(IDS).last_hidden_state, model.model(IDS).last_hidden_state)
    decoder.save_pretrained(tmp_path / "decoder")
    again = DemiurgicModel.from_pretrained(tmp_path / "decoder")
    assert torch.equal(again(IDS).last_hidden_state, model.model(IDS).last_hidden_state)
    with pytest.raises(RuntimeError, match=r"missing: model\.embed_tokens\.weight.* more; unexpected: embed_tokens"):
        DemiurgicForCausalLM.from_pretrained(tmp_path / "decoder")


# Hugging Face's folders


def llama_folder(path, *, kind="Llama", **changes):
    transformers = pytest.importorskip("transformers")
    settings = TINY | {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}} | changes
    llama = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings)).eval()
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.normal_(0.5, 0.3)
    llama.save_pretrained(path)
    return llama


def edit(path, **changes):
    """Change keys of a JSON file; ... removes one."""
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not ...}))


def spell_as_before_5(path):
    """rope_theta and rope_scaling apart, its name under "type", a stale buffer, the older dtype key."""
    rope = json.loads((path / "config.json").read_text())["rope_parameters"]
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    scaling = None if kind == "default" else {"type": kind, **rope}
    edit(
        path / "config.json",
        rope_parameters=...,
        rope_theta=theta,
        rope_scaling=scaling,
        torch_dtype="float32",
    )
    stale = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(load_file(path / "model.safetensors") | stale, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("respell", [lambda path: None, spell_as_before_5])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 2, "head_dim": 16},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"hidden_act": "swish", "rms_norm_eps": 0.01},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
        {"rope_parameters": YARN | {"rope_theta": 500.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
                "rope_theta": 500.0,
            }
        },
        {"kind": "Mistral", "sliding_window": None, "num_key_value_heads": 2},
    ],
)
@torch.no_grad()
def test_folders_of_hugging_face(tmp_path, changes, respell):
    llama = llama_folder(tmp_path, **changes)
    respell(tmp_path)
    model = DemiurgicForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(model(IDS).logits, llama(IDS).logits, atol=1e-4, rtol=0)
    model.save_pretrained(tmp_path / "ours")
    assert same_logits(DemiurgicForCausalLM.from_pretrained(tmp_path / "ours"), model)


def test_keys_that_hugging_face_leaves_out_have_its_defaults(tmp_path):
    llama = llama_folder(tmp_path)
    left_out = [
        "max_position_embeddings",
        "pad_token_id",
        "hidden_act",
        "rope_parameters",
        "model_type",
        "head_dim",
    ]
    edit(tmp_path / "config.json", **dict.fromkeys(left_out, ...))
    config = DemiurgicForCausalLM.from_pretrained(tmp_path).config
    defaults = type(llama.config)()
    assert config.max_position_embeddings == defaults.max_position_embeddings == 2048
    assert config.pad_token_id is defaults.pad_token_id is None
    assert config.rope_theta == defaults.rope_parameters["rope_theta"]


@pytest.mark.parametrize("eos, expected", [([2, 7, 9], [2, 7, 9]), (5, 5), (None, 2), (..., 2)])
def test_end_ids_come_from_generation_config(tmp_path, eos, expected):
    llama_folder(tmp_path)
    (tmp_path / "generation_config.json").write_text("{}")
    edit(tmp_path / "generation_config.json", eos_token_id=eos, temperature=0.3)
    assert DemiurgicForCausalLM.from_pretrained(tmp_path).config.eos_token_id == expected


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"qk_norm": True}, TypeError, "'qk_norm'"),
        ({"quantization_config": {"bits": 4}}, TypeError, "'quantization_config'"),
        ({"logit_scale": 0.5, "clip_qkv": 8}, TypeError, "'logit_scale', 'clip_qkv'"),
        ({"auto_map": {}}, TypeError, "'auto_map'"),
        ({"hidden_act": "gelu"}, ValueError, "hidden_act 'gelu' is not supported"),
        ({"sliding_window": 32}, ValueError, "sliding_window = 32 is not implemented"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, TypeError, "'layer_types'"),
        ({"partial_rotary_factor": 0.5}, ValueError, "partial_rotary_factor = 0.5"),
        ({"model_type": "qwen2"}, ValueError, "model_type 'qwen2' is not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, ValueError, "LlamaForSequenceClassification"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, ValueError, "as the text grows"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            ValueError,
            "partial_rotary",
        ),
        ({"hidden_size": "32"}, TypeError, "hidden_size must be an integer"),
        (
            {"vocab_size": 62},
            RuntimeError,
            "model.embed_tokens.weight [61, 32] instead of [62, 32], lm_head.weight",
        ),
        ({"attention_bias": True}, RuntimeError, "missing: model.layers.0.self_attn.q_proj.bias"),
        ({"num_hidden_layers": 1, "layer_types": None}, RuntimeError, "unexpected: model.layers.1"),
        ({"num_hidden_layers": 9}, RuntimeError, "and 55 more"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, changes, error, words):
    llama_folder(tmp_path)
    edit(tmp_path / "config.json", **changes)
    with pytest.raises(error) as raised:
        DemiurgicForCausalLM.from_pretrained(tmp_path)
    assert words in str(raised.value) and str(tmp_path) in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": None, "layer_types": ["full_attention"] * 2, "partial_rotary_factor": 1.0},
        {"pretraining_tp": 2, "_name_or_path": "x", "tokenizer_class": "T", "transformers_version": "4.31"},
        {"pad_token_id": -1, "torch_dtype": "bfloat16", "use_cache": True},
    ],
)
def test_what_changes_nothing_is_ignored(tmp_path, changes):
    llama_folder(tmp_path)
    model = DemiurgicForCausalLM.from_pretrained(tmp_path)
    edit(tmp_path / "config.json", **changes)
    assert same_logits(DemiurgicForCausalLM.from_pretrained(tmp_path), model)


# Damaged folders


def cut(path, keep=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def store(path, **changes):
    """Change tensors of the folder's safetensors file; ... removes one."""
    tensors = load_file(path / "model.safetensors") | changes
    save_file({name: t for name, t in tensors.items() if t is not ...}, path / "model.safetensors")


def use_bin(path, content):
    (path / "model.safetensors").unlink()
    torch.save(content, path / "pytorch_model.bin")


class Code:
    def __reduce__(self):
        return (print, ("this must never run",))


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    "damage, error, words",
    [
        (lambda p: shutil.rmtree(p), FileNotFoundError, "There is no folder"),
        (lambda p: (p / "config.json").unlink(), FileNotFoundError, "has no config.json"),
        (
            lambda p: (p / "model.safetensors").unlink(),
            FileNotFoundError,
            "holds no weights: none of model.safetens",
        ),
        (lambda p: cut(p / "config.json"), ValueError, "config.json is not JSON"),
        (lambda p: (p / "config.json").write_bytes(b"\xff\xfe{}"), ValueError, "config.json is not JSON"),
        (lambda p: (p / "config.json").write_text("[1]"), ValueError, "must hold a JSON object, not a list"),
        (
            lambda p: cut(p / "model.safetensors"),
            RuntimeError,
            "bytes) is not a whole safetensors file; it may be truncated",
        ),
        (
            lambda p: cut(p / "model.safetensors", 0),
            RuntimeError,
            "model.safetensors (0 bytes) is not a whole",
        ),
        (
            lambda p: (p / "model.safetensors").write_text("version https://git-lfs"),
            RuntimeError,
            "not a whole",
        ),
        (lambda p: store(p, **{NORM: ...}), RuntimeError, f"Tensors missing: {NORM}."),
        (lambda p: store(p, extra=torch.ones(1)), RuntimeError, "Tensors unexpected: extra."),
        (lambda p: store(p, **{NORM: torch.ones(31)}), RuntimeError, f"{NORM} [31] instead of [32]."),
        (
            lambda p: store(p, **{NORM: ..., "a": torch.ones(1)}),
            RuntimeError,
            f"missing: {NORM}; unexpected: a.",
        ),
        (
            lambda p: store(p, **{NORM: torch.ones(32, dtype=torch.int8)}),
            RuntimeError,
            f"{NORM} is stored as torch.int8",
        ),
        (lambda p: use_bin(p, [torch.ones(1)]), RuntimeError, "is not a state dict"),
        (lambda p: use_bin(p, {"step": 3}), RuntimeError, "is not a state dict"),
        (lambda p: use_bin(p, {NORM: Code()}), RuntimeError, "could run code when loaded"),
        (
            lambda p: (use_bin(p, {NORM: torch.ones(32)}), cut(p / "pytorch_model.bin")),
            RuntimeError,
            "pytorch_model.bin",
        ),
        (
            lambda p: (use_bin(p, {}), cut(p / "pytorch_model.bin", 0)),
            RuntimeError,
            "(0 bytes) is not a whole PyTorch",
        ),
        (lambda p: edit(p / "config.json", tie_word_embeddings=True), RuntimeError, "lm_head.weight differ"),
    ],
)
def test_damaged_folders(tmp_path, capfd, damage, error, words):
    folder = tmp_path / "model"
    model_of().save_pretrained(folder)
    damage(folder)
    with pytest.raises(error) as raised:
        DemiurgicForCausalLM.from_pretrained(folder)
    assert words in str(raised.value) and str(folder) in str(raised.value)
    assert "\n" not in str(raised.value) and not capfd.readouterr().out


@pytest.mark.parametrize(
    "index, error, words",
    [
        ({}, ValueError, 'has no "weight_map"'),
        ({"weight_map": {"a": "model-00002-of-00009.safetensors"}}, FileNotFoundError, "not in the folder"),
        ({"weight_map": {"a": "../model.safetensors"}}, ValueError, "must lie in the same folder"),
    ],
)
def test_damaged_indexes(tmp_path, index, error, words):
    model_of().save_pretrained(tmp_path / "model", max_shard_size="200KB")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model.safetensors")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(error, match=words):
        DemiurgicForCausalLM.from_pretrained(tmp_path / "model")


def test_a_lost_shard_is_named(tmp_path):
    model_of().save_pretrained(tmp_path, max_shard_size="20KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(FileNotFoundError, match=lost.name):
        DemiurgicForCausalLM.from_pretrained(tmp_path)


def test_weights_are_as_readable_as_the_config(tmp_path):
    model_of().save_pretrained(tmp_path)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
