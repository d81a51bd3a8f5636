"""From a module to the tensors and shapes the C++ engine works on; refuses what it would compute wrongly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from demiurgic import _C
from demiurgic.config import DemiurgicConfig
from demiurgic.rotary import rotary_frequencies

# The classes whose forward the engine knows: ours, and these of torch. Subclasses may compute something else.
_OUR_MODULE = "demiurgic.model"
_TORCH_CLASSES = frozenset({nn.Linear, nn.Embedding, nn.ModuleList, nn.Dropout, nn.Identity})

_COMPILED = "_orig_mod"  # torch.compile keeps the module it wraps under this name


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile wrappers.

    Raises:
        TypeError: not a DemiurgicForCausalLM, nor a wrapper of one.
        ValueError: the parameters are sharded over processes (FSDP, DeepSpeed ZeRO-3).
    """
    inner = model
    while isinstance(inner, nn.Module):
        if type(inner).__name__ == "FullyShardedDataParallel":
            raise ValueError(
                "The model is wrapped in FullyShardedDataParallel: each process holds only a part of every parameter. "
                "Gather them first (FullyShardedDataParallel.summon_full_params) and pass the module inside."
            )
        if isinstance(inner, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = inner.module
        elif _COMPILED in inner._modules:
            inner = getattr(inner, _COMPILED)
        else:
            break
    if not isinstance(inner, nn.Module) or not isinstance(getattr(inner, "config", None), DemiurgicConfig):
        raise TypeError(
            f"The model is a {type(inner).__name__}; demiurgic generates from a DemiurgicForCausalLM "
            "(also inside DistributedDataParallel or torch.compile)."
        )
    if "lm_head" not in inner._modules:
        raise TypeError(
            f"The model is a {type(inner).__name__}, which has no head over the vocabulary; "
            "pass the DemiurgicForCausalLM around it."
        )
    return inner


def live_weights(model: nn.Module) -> _C.Weights:
    """References to the parameters of `model`, which `unwrap` returned, in the roles of the engine.

    Raises:
        ValueError: a part of the decoder has a forward hook or a changed forward, is parametrized, quantized or of
            another class than ours; parameters are sharded, on several devices, on the meta device, of dtypes that
            cannot be mixed, or of shapes that do not fit the config. The message names the part.
    """
    modules = _modules(model)
    parameters = {
        f"{name}.{kind}" if name else kind: parameter
        for name, module in modules
        for kind, parameter in module._parameters.items()
        if parameter is not None
    }
    for name, parameter in parameters.items():
        _refuse_sharded(name, parameter)  # before the hooks and classes with which sharding works, to name the cause
    _refuse_changed_forward(model, modules[1:])
    return _C.Weights(model_config(model), parameters)


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """`model` and every module in it, but not the wrappers that torch.compile puts around inner ones.

    nn.Module.named_modules and named_parameters would walk the tree once each, through a generator for every level;
    a call of few tokens would wait for that.
    """
    found: list[tuple[str, nn.Module]] = [("", model)]

    def add(prefix: str, parent: nn.Module) -> None:
        for child, module in parent._modules.items():
            while module is not None and _COMPILED in module._modules:
                module = module._modules[_COMPILED]
            if module is not None:
                found.append((prefix + child, module))
                add(f"{prefix}{child}.", module)

    add("", model)
    return found


def model_config(model: nn.Module) -> _C.ModelConfig:
    """The engine's description of the decoder of `model`."""
    config: DemiurgicConfig = model.config  # type: ignore[assignment]
    decoder: Any = model.model
    frequencies, scaling = rotary_frequencies(config)
    return _C.ModelConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        rms_norm_eps=decoder.norm.eps,
        rotary_frequencies=frequencies.tolist(),
        rotary_scaling=scaling,
        layers=[_layer_config(layer, config) for layer in decoder.layers],
    )


def _layer_config(layer: Any, config: DemiurgicConfig) -> _C.LayerConfig:
    # Where a layer keeps what it was built with, that counts, as it does in forward; not what config has become.
    activation: str = layer.mlp.activation
    return _C.LayerConfig(
        num_heads=config.num_attention_heads,
        num_kv_heads=config.kv_heads,
        head_dim=layer.self_attn.head_dim,
        intermediate_size=config.intermediate_size,
        activation={"swiglu": "silu", "swish": "silu"}.get(activation, activation),
        gated=activation == "swiglu",
    )


def _refuse_changed_forward(model: nn.Module, inner: list[tuple[str, nn.Module]]) -> None:
    forward = getattr(type(model), "forward", None)
    if getattr(forward, "__module__", None) != _OUR_MODULE:
        raise ValueError(
            f"{type(model).__name__} has a forward of its own, which generate would not run; "
            "it knows DemiurgicForCausalLM's only."
        )
    hooks = nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    if hooks:
        raise ValueError(
            "A forward hook for all modules is registered (torch.nn.modules.module.register_module_forward_hook), "
            "which generate would not run; remove it first."
        )
    for name, module in inner:
        if type(module).__module__ != _OUR_MODULE and type(module) not in _TORCH_CLASSES:
            raise ValueError(
                f"{name} is of class {type(module).__name__}, which generate does not know: it would compute something "
                "else. Merge adapters, remove parametrizations and undo quantization first."
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"{name} has a forward hook, which generate would not run; remove it first.")
        changed = not type(module).forward.__module__.startswith((_OUR_MODULE, "torch.nn.modules."))
        if changed or "forward" in vars(module):
            raise ValueError(f"The forward of {name} was replaced, and generate would not run it; restore it first.")


def _refuse_sharded(name: str, parameter: Tensor) -> None:
    if hasattr(parameter, "ds_id"):
        raise ValueError(
            f"The parameter {name} is partitioned by DeepSpeed ZeRO-3; generate inside "
            "deepspeed.zero.GatheredParameters over all parameters."
        )
    if type(parameter).__name__ == "DTensor" or type(parameter.data).__name__ == "DTensor":
        raise ValueError(
            f"The parameter {name} is a DTensor, sharded by fully_shard or tensor parallelism; generate works on whole "
            "parameters. Gather them into an unsharded model first."
        )
    if parameter.layout != torch.strided:
        raise ValueError(f"The parameter {name} is {parameter.layout}; generate works on dense parameters.")
