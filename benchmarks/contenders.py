"""The engines that peers.py compares, each in a process of its own: python contenders.py NAME THREADS.

A worker reads one JSON object a line from standard input, {"do": "check" | "load" | "generate", ...}, and answers
each with one line. The parent stops it (SIGSTOP) while another one is timed, so its spinning threads cost the others
nothing. What libraries print goes to standard error. An engine gets weights, activations and cache of the same type.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

Prompts = list[list[int]]  # of one length


class UnsupportedError(Exception):
    """The engine cannot do what is asked at equal precision; the message says why."""


class Demiurgic:
    packages = ("demiurgic", "torch")
    module = "demiurgic"

    def __init__(self, folder: Path, dtype: str, threads: int, batch: int, context: int) -> None:
        import torch

        import demiurgic

        torch.set_num_threads(threads)
        self.model = demiurgic.DemiurgicForCausalLM.from_pretrained(folder).eval()
        self.precision = f"weights, activations and cache {dtype}"

    def generate(self, prompts: Prompts, new: int) -> Prompts:
        import demiurgic

        out = demiurgic.generate(self.model, prompts, max_new_tokens=new, do_sample=False, eos_token_id=[])
        return out[:, len(prompts[0]) :].tolist()


class HuggingFace:
    packages = ("transformers", "torch")
    module = "transformers"

    def __init__(self, folder: Path, dtype: str, threads: int, batch: int, context: int) -> None:
        import torch
        from transformers import LlamaForCausalLM

        torch.set_num_threads(threads)
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        self.precision = f"weights, activations and cache {dtype}"

    def generate(self, prompts: Prompts, new: int) -> Prompts:
        import torch

        ids = torch.tensor(prompts)
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
        return out[:, ids.shape[1] :].tolist()


class PlainTorch:
    packages = ("torch",)
    module = "torch"

    def __init__(self, folder: Path, dtype: str, threads: int, batch: int, context: int) -> None:
        import torch
        from torch_loop import TorchLoop

        torch.set_num_threads(threads)
        self.loop = TorchLoop.from_folder(folder, batch, context)
        self.precision = f"weights, activations and cache {dtype}"

    def generate(self, prompts: Prompts, new: int) -> Prompts:
        import torch

        return self.loop.generate(torch.tensor(prompts), new).tolist()


class LlamaCpp:
    """llama.cpp by its C interface, which llama-cpp-python binds: its Python class runs one sequence at a time."""

    packages = ("llama-cpp-python",)
    module = "llama_cpp"
    format = "gguf"

    def __init__(self, folder: Path, dtype: str, threads: int, batch: int, context: int) -> None:
        import llama_cpp

        self.api, self.batch, self.context_tokens = llama_cpp, batch, context
        llama_cpp.llama_backend_init()
        model_settings = llama_cpp.llama_model_default_params()
        model_settings.use_mmap = False  # its own memory, as all others have
        self.model = llama_cpp.llama_model_load_from_file(str(folder / "model.gguf").encode(), model_settings)
        cache_type = {"float32": 0, "bfloat16": 30}[dtype]  # GGML_TYPE_F32 and _BF16, which the binding does not name
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = batch * -(-context // 256) * 256
        settings.n_batch = batch * context
        settings.n_seq_max = batch
        settings.n_threads = settings.n_threads_batch = threads
        settings.type_k = settings.type_v = cache_type
        if dtype == "float32":  # its flash attention rounds to float16 inside, and is the slower one in decode
            settings.flash_attn_type = 0
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.model or not self.context:
            raise UnsupportedError(f"llama.cpp refused the model or a cache of {dtype}; its log says why")
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.tokens = llama_cpp.llama_batch_init(batch * context, 0, 1)
        self.precision = f"weights and cache {dtype}; activations float32"
        if dtype == "bfloat16":
            self.precision += ", rounded to bfloat16 for each product"

    def generate(self, prompts: Prompts, new: int) -> Prompts:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)
        answers: Prompts = [[] for _ in prompts]
        step, start = prompts, 0
        for _ in range(new):
            last = self._decode(step, start)
            start += len(step[0])
            step = [[self._likeliest(i)] for i in last]
            for row, (token,) in enumerate(step):
                answers[row].append(token)
        return answers

    def _decode(self, rows: Prompts, start: int) -> list[int]:
        """Computes the rows' tokens, whose first is at `start`; the places of each row's last in the batch."""
        batch, last, i = self.tokens, [], 0
        for row, tokens in enumerate(rows):
            for offset, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = token, start + offset
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
                batch.logits[i] = offset == len(tokens) - 1
                i += 1
            last.append(i - 1)
        batch.n_tokens = i
        status = self.api.llama_decode(self.context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        return last

    def _likeliest(self, i: int) -> int:
        import numpy

        logits = self.api.llama_get_logits_ith(self.context, i)
        return int(numpy.ctypeslib.as_array(logits, (self.vocab,)).argmax())


class OpenVINO:
    packages = ("openvino-genai", "openvino", "optimum-intel")
    module = "openvino_genai"
    format = "openvino"

    def __init__(self, folder: Path, dtype: str, threads: int, batch: int, context: int) -> None:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = batch * context
        scheduler.max_num_seqs = batch
        short = {"float32": "f32", "bfloat16": "bf16"}[dtype]
        self.genai = openvino_genai
        self.pipeline = openvino_genai.LLMPipeline(
            str(folder),
            "CPU",
            INFERENCE_PRECISION_HINT=short,
            KV_CACHE_PRECISION=short,
            INFERENCE_NUM_THREADS=threads,
            scheduler_config=scheduler,
        )
        self.precision = f"weights {dtype}; INFERENCE_PRECISION_HINT and KV_CACHE_PRECISION {short}"

    def generate(self, prompts: Prompts, new: int) -> Prompts:
        import numpy
        import openvino

        ids = numpy.array(prompts, dtype=numpy.int64)
        inputs = self.genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
        config = self.genai.GenerationConfig(max_new_tokens=new, do_sample=False, ignore_eos=True)
        return [list(row) for row in self.pipeline.generate(inputs, config).tokens]


class OnnxRuntime:
    packages = ("onnxruntime-genai", "onnxruntime")
    module = "onnxruntime_genai"
    format = "onnx"

    @staticmethod
    def check(dtype: str) -> None:
        if dtype != "float32":
            raise UnsupportedError(f"its CPU provider has no {dtype} kernels for the model that its builder writes")

    def __init__(self, folder: Path, dtype: str, threads: int, batch: int, context: int) -> None:
        import onnxruntime_genai

        self.genai = onnxruntime_genai
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = onnxruntime_genai.Model(config)
        self.precision = f"weights, activations and cache {dtype}"

    def generate(self, prompts: Prompts, new: int) -> Prompts:
        import numpy

        length = len(prompts[0])
        params = self.genai.GeneratorParams(self.model)
        params.set_search_options(batch_size=len(prompts), max_length=length + new, do_sample=False)
        generator = self.genai.Generator(self.model, params)
        generator.append_tokens(numpy.array(prompts, dtype=numpy.int32))
        for _ in range(new):
            generator.generate_next_token()
        return [generator.get_sequence(row)[length:].tolist() for row in range(len(prompts))]


class CTranslate2:
    packages = ("ctranslate2",)
    module = "ctranslate2"
    format = "ctranslate2"

    @staticmethod
    def check(dtype: str) -> None:
        import ctranslate2

        supported = ctranslate2.get_supported_compute_types("cpu")
        if dtype not in supported:
            raise UnsupportedError(f"it has no {dtype} on this CPU, only {', '.join(sorted(supported))}")

    def __init__(self, folder: Path, dtype: str, threads: int, batch: int, context: int) -> None:
        import ctranslate2

        self.generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type=dtype, intra_threads=threads, inter_threads=1
        )
        self.words = json.loads((folder / "vocabulary.json").read_text())
        self.precision = f"weights, activations and cache {dtype}"

    def generate(self, prompts: Prompts, new: int) -> Prompts:
        results = self.generator.generate_batch(
            [[self.words[token] for token in prompt] for prompt in prompts],
            max_length=new,
            min_length=new,
            end_token=[],
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]


CONTENDERS = {
    "demiurgic": Demiurgic,
    "hf": HuggingFace,
    "torch": PlainTorch,
    "llamacpp": LlamaCpp,
    "openvino": OpenVINO,
    "onnxruntime": OnnxRuntime,
    "ctranslate2": CTranslate2,
}


class Worker:
    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads, self.engine = name, threads, None

    def check(self, dtype: str) -> dict[str, Any]:
        """An answer without an error if the engine is installed and can do the type."""
        kind = CONTENDERS[self.name]
        importlib.import_module(kind.module)
        if hasattr(kind, "check"):
            kind.check(dtype)
        return {}

    def load(self, folder: str, dtype: str, batch: int, context: int) -> dict[str, Any]:
        kind = CONTENDERS[self.name]
        self.engine = kind(Path(folder), dtype, self.threads, batch, context)
        versions = {package: version(package) for package in kind.packages}
        return {"precision": self.engine.precision, "versions": versions}

    def generate(self, prompts: Prompts, new: int) -> dict[str, Any]:
        start = time.perf_counter()
        tokens = self.engine.generate(prompts, new)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": tokens, "memory": memory()}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def memory() -> dict[str, int]:
    """Bytes in memory, and how many of them are on 2 MiB pages; nothing where the system does not tell."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return {}
    kilobytes = {words[0]: int(words[1]) for words in map(str.split, lines[1:])}
    return {"resident": kilobytes["Rss:"] * 1024, "huge_pages": kilobytes["AnonHugePages:"] * 1024}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            kind = "" if isinstance(error, UnsupportedError) else f"{type(error).__name__}: "
            reply = {"error": f"{kind}{error}".strip().splitlines()[0]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    os._exit(0)  # some libraries crash while they take themselves down


if __name__ == "__main__":
    main()
