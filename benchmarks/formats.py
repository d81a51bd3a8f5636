"""Writes a model's folder (see sizes.py) in the format of another engine: python formats.py FORMAT SOURCE TARGET.

peers.py runs this with the interpreter that the engine is installed in. Each format keeps the weights' values exactly.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path


def gguf(source: Path, target: Path) -> None:
    """llama.cpp's model.gguf, in the weights' own type; norms are float32, as its own converter has them."""
    import gguf as library
    from safetensors.torch import load_file

    config = json.loads((source / "config.json").read_text())
    weights = load_file(source / "model.safetensors")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    bfloat16 = config["torch_dtype"] == "bfloat16"
    target.mkdir()
    writer = library.GGUFWriter(target / "model.gguf", "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    quantization = library.GGMLQuantizationType
    names = library.get_tensor_name_map(library.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in weights.items():
        if name.endswith("q_proj.weight"):
            tensor = interleaved(tensor, heads)
        elif name.endswith("k_proj.weight"):
            tensor = interleaved(tensor, kv_heads)
        new_name = names.get_name(name, try_suffixes=(".weight",))
        if bfloat16 and tensor.dim() == 2:
            data = tensor.contiguous().view(dtype=_torch().uint8).numpy()
            writer.add_tensor(new_name, data, raw_dtype=quantization.BF16)
        else:
            writer.add_tensor(new_name, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weight, heads):
    """Rows in the order of llama.cpp's rotary embedding: pairs (0, 1), (2, 3), ... instead of (0, D/2), (1, D/2+1)."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def openvino(source: Path, target: Path) -> None:
    """OpenVINO's IR with weights of the type that the source has, never compressed to 8 bits."""
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig

    dtype = json.loads((source / "config.json").read_text())["torch_dtype"]
    main_export(
        str(source),
        target,
        task="text-generation-with-past",
        library_name="transformers",
        ov_config=OVConfig(dtype={"float32": "fp32", "bfloat16": "bf16"}[dtype]),
        convert_tokenizer=False,
    )


def onnx(source: Path, target: Path) -> None:
    """onnxruntime-genai's folder for the CPU, float32, without EOS."""
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-p", "fp32", "-e", "cpu"]
    subprocess.run([*builder, "-m", source, "-o", target, "-c", target / "builder"], check=True)
    file = target / "genai_config.json"
    config = json.loads(file.read_text())
    config["model"]["eos_token_id"] = []
    file.write_text(json.dumps(config, indent=2))


def ctranslate2(source: Path, target: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(source)).convert(str(target))


FORMATS = {"gguf": gguf, "openvino": openvino, "onnx": onnx, "ctranslate2": ctranslate2}


def _torch():
    import torch

    return torch


def main() -> None:
    if len(sys.argv) != 4 or sys.argv[1] not in FORMATS:
        sys.exit(f"formats.py FORMAT SOURCE TARGET; FORMAT is one of {', '.join(FORMATS)}")
    source, target = Path(sys.argv[2]), Path(sys.argv[3])
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    FORMATS[sys.argv[1]](source, partial)
    partial.rename(target)  # so that what is half written is never taken for a model


if __name__ == "__main__":
    main()
