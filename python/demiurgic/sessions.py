"""Sessions: the cache of keys and values stays between calls, and what begins as before is not computed again."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from demiurgic import _C
from demiurgic._build_info import TORCH_VERSION
from demiurgic.engine import DEFAULT_STEP_TOKENS, check_engine_limits, generate, score
from demiurgic.live_weights import live_weights, unwrap
from demiurgic.output import GenerationOutput
from demiurgic.prefix_file import FORMAT, Origin, Prefix, read_prefix, write_prefix
from demiurgic.prompts import read_prompts
from demiurgic.streaming import Stream, stream


@dataclass(frozen=True)
class SessionInfo:
    """What a session holds, and what it has been good for so far.

    Attributes:
        tokens: kept tokens; one that several prefixes share counts once.
        bytes: of the blocks of the cache that hold them.
        cache_bytes: of the whole cache as it is allocated now.
        hits: rows that began with a kept prefix.
        reused_tokens: tokens that these rows did not compute.
        computed_tokens: tokens that went through the model.
        evictions: blocks of 16 tokens that made room for others.
        drops: how many times kept prefixes were dropped because the weights had changed.
    """

    tokens: int
    bytes: int
    cache_bytes: int
    hits: int
    reused_tokens: int
    computed_tokens: int
    evictions: int
    drops: int


# Of an engine's counters, those that go on when an engine follows another.
_TOTALS = ("num_hits", "num_reused_tokens", "num_computed_tokens", "num_evicted_blocks")


class Session:
    """Calls on one model that share a cache of keys and values; demiurgic.session makes it.

    Its calls may come from several threads. Each first takes the fingerprint of the weights: the values of all
    parameters, which are read once. Where it is another one, all that is kept is dropped.
    """

    def __init__(
        self,
        model: nn.Module,
        cache_bytes: int | None = None,
        *,
        max_step_tokens: int | None = None,
        exact: bool | None = None,
    ) -> None:
        check_engine_limits(cache_bytes, max_step_tokens, exact)
        self._module = unwrap(model)
        live_weights(self._module)  # refuses now what the calls would refuse
        self._cache_bytes = cache_bytes
        self._max_step_tokens = max_step_tokens or DEFAULT_STEP_TOKENS
        self._exact = exact is not False
        self._lock = threading.Lock()  # guards all below
        self._engine: _C.Engine | None = None
        self._fingerprint = 0
        self._closed = False
        self._drops = 0
        self._totals = dict.fromkeys(_TOTALS, 0)  # of engines before this one

    def generate(
        self, input_ids: Any, max_new_tokens: int | str | None = None, *, attention_mask: Any = None, **options: Any
    ) -> Tensor | GenerationOutput:
        """model.generate with this session's cache.

        A row computes what no kept prefix has, and at least its last prompt token. Its own tokens, prompt and
        completion, are kept when it ends, also if it is cancelled. Rows with `use_cache=False` do neither.

        Raises:
            RuntimeError: the session is closed.
            ValueError: cache_bytes, max_step_tokens or exact is given, which the session has.
        """
        return generate(self._module, input_ids, attention_mask, **self._with_session(max_new_tokens, options))

    def stream(
        self, input_ids: Any, max_new_tokens: int | str | None = None, *, attention_mask: Any = None, **options: Any
    ) -> Stream:
        """model.stream with this session's cache; a stream that is closed early leaves what it has."""
        return stream(self._module, input_ids, attention_mask, **self._with_session(max_new_tokens, options))

    def _with_session(self, max_new_tokens: int | str | None, options: dict[str, Any]) -> dict[str, Any]:
        if "session" in options:
            raise TypeError("session= is given to a method of a session, whose calls are its own; leave it out.")
        if max_new_tokens is not None:
            options["max_new_tokens"] = max_new_tokens
        return {**options, "session": self}

    def score(self, input_ids: Any, attention_mask: Any = None, **keywords: Any) -> Tensor:
        """demiurgic.score with this session's model and cache.

        All logits are wanted, so all tokens are computed; and nothing is kept: scoring a data set does not drive out
        what the session is for.
        """
        return score(self._module, input_ids, attention_mask, session=self, **keywords)

    def prefill(self, input_ids: Any, attention_mask: Any = None) -> None:
        """Computes prompts without going on from them: calls that begin with them, or as they do, start there.

        Args:
            input_ids: integers [B, T] or [T], or a list of prompts of any lengths.
            attention_mask: [B, T], as in generate.

        Raises:
            as generate does.
        """
        generate(
            self._module,
            input_ids,
            attention_mask,
            session=self,
            max_new_tokens=1,  # sampled from the last logits, and not kept: only what went through the model is
            do_sample=False,
            eos_token_id=[],
        )

    def save_prefix(self, path: str | os.PathLike[str], input_ids: Any) -> None:
        """Writes keys and values of one prompt to a safetensors file; what is not kept is computed first.

        The file has int64 `tokens` [T], and `keys` and `values` [layers, kv_heads, T, head_dim] in the weights' dtype.

        Args:
            input_ids: integers [T] or [1, T], or a list of ids: one prompt, all of it tokens.

        Raises:
            ValueError: more than one prompt.
            RuntimeError: no room in the cache, with the numbers; other calls have driven the prefix out, or the weights
                have changed meanwhile.
            FileNotFoundError: there is no such folder.
            OSError: the file cannot be written.
        """
        rows, *_ = read_prompts(input_ids, None, None, ())
        if len(rows) != 1:
            raise ValueError(f"input_ids has {len(rows)} rows, but a file holds one prefix; save each in its own.")
        self.prefill(rows, [[1] * len(rows[0])])  # pad ids at its edges are tokens
        with self._lock:
            self._refuse_closed()
            engine, fingerprint = self._engine, self._fingerprint
            assert engine is not None  # made by prefill
            origin = self._origin(engine)
        keys, values = engine.read_prefix(rows[0], fingerprint)
        write_prefix(path, Prefix(torch.tensor(rows[0], device="cpu"), keys, values), origin)

    def load_prefix(self, path: str | os.PathLike[str]) -> Tensor:
        """Keeps the prefix in a file that save_prefix wrote for the same weights.

        Returns:
            int64 [T] on the CPU: its tokens, for prompts to begin with.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no prefix, or one of other weights, shapes, dtype, kernels or another build.
            RuntimeError: the file is damaged, or the cache has no room, with the numbers.
        """
        engine = self.engine_for(self._module)
        with self._lock:
            fingerprint, origin = self._fingerprint, self._origin(engine)
        tokens, keys, values = read_prefix(path, origin)
        engine.write_prefix(tokens.tolist(), keys, values, fingerprint)
        return tokens.clone()  # the file may go

    def clear(self) -> None:
        """Drops all prefixes; the cache's memory is given back, unless calls are under way, which go on."""
        with self._lock:
            self._refuse_closed()
            engine = self._engine
        if engine is not None:
            engine.clear_prefixes()  # without the lock: it waits for a step, in which a hook may ask the session

    def close(self) -> None:
        """Gives everything back and refuses calls from now on. Calls under way in other threads go on to their end."""
        with self._lock:
            self._closed = True
            engine = self._retire_engine()
        if engine is not None:
            engine.clear_prefixes()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def info(self) -> SessionInfo:
        """The state of now; after close, that of the end."""
        with self._lock:
            now = self._engine.counters() if self._engine is not None else {}
            total = {name: past + now.get(name, 0) for name, past in self._totals.items()}
            return SessionInfo(
                tokens=now.get("num_kept_tokens", 0),
                bytes=now.get("kept_bytes", 0),
                cache_bytes=now.get("cache_bytes", 0),
                hits=total["num_hits"],
                reused_tokens=total["num_reused_tokens"],
                computed_tokens=total["num_computed_tokens"],
                evictions=total["num_evicted_blocks"],
                drops=self._drops,
            )

    def __enter__(self) -> Session:
        self._refuse_closed()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<demiurgic session: {'closed' if self._closed else self.info}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("A session holds a cache in this process and cannot be copied or pickled; make another one.")

    def engine_for(self, module: nn.Module) -> _C.Engine:
        """The engine of a call that begins now: what it keeps is of the values that the weights have now.

        Calls under way keep the engine that they have. Where parameters are other tensors than before, there is a new
        one; where only values have changed it stays, and what those calls still compute is not kept.

        Raises:
            RuntimeError: the session is closed.
            ValueError: `module` is another model than the session's, or cannot be run as it is.
        """
        if module is not self._module:
            raise ValueError("The session is of another model than the one that is given; make a session of this one.")
        retired = None
        with self._lock:
            self._refuse_closed()
            weights = live_weights(module)
            engine = self._engine
            if engine is None or not engine.serves(weights, self._cache_bytes, self._max_step_tokens, self._exact):
                retired = self._retire_engine()
                engine = _C.Engine(
                    weights, self._cache_bytes, self._max_step_tokens, keep_prefixes=True, exact=self._exact
                )
                self._engine = engine
            self._fingerprint = engine.fingerprint()
            self._drops += engine.keep_prefixes_of(self._fingerprint)
        if retired is not None:
            retired.clear_prefixes()
        return engine

    def _retire_engine(self) -> _C.Engine | None:
        """Lets the engine go and returns it: its prefixes count as dropped, and are to be cleared without the lock."""
        engine, self._engine = self._engine, None
        if engine is None:
            return None
        counters = engine.counters()
        for name in _TOTALS:
            self._totals[name] += counters[name]
        self._drops += counters["num_kept_tokens"] > 0 and not self._closed
        return engine

    def _origin(self, engine: _C.Engine) -> Origin:
        config: Any = self._module.config
        decoder: Any = self._module.model
        dtype = str(decoder.embed_tokens.weight.dtype).removeprefix("torch.")
        return Origin(
            format=FORMAT,
            build=f"demiurgic {version('demiurgic')} for torch {TORCH_VERSION}",
            shape=f"{len(decoder.layers)} layers, {config.kv_heads} key/value heads of "
            f"{decoder.layers[0].self_attn.head_dim}, {dtype}",
            kernels=engine.kernels,
            weights=f"{self._fingerprint:016x}",
        )

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RuntimeError("The session is closed; make another one with demiurgic.session.")


def session(
    model: nn.Module,
    cache_bytes: int | None = None,
    *,
    max_step_tokens: int | None = None,
    exact: bool | None = None,
) -> Session:
    """A session: calls on `model` that keep what they have computed, for others that begin as they do.

    Of each prompt the longest kept prefix is found, to the token, and its keys and values are used: a chat's next turn
    computes what is new in it, prompts that share a document compute it once. On the CPU's own kernels results have
    the bits that they have without a session; on the reference kernels and other devices, and where `exact=False` lets
    CUDA use a library, they agree to rounding.

    Prefixes are kept until the session ends, the weights change, or room is wanted: then the least recently used go,
    before any row is made to wait. Use it with `with`, or call `close`.

    Args:
        model: as in generate.
        cache_bytes: most memory of the session's cache in bytes, 1 or more. None: calls have what they want, up to
            nine tenths of what is free on the device; to keep prefixes, the cache grows up to a quarter of that.
        max_step_tokens: most prompt tokens computed at a time, 1 or more. None: 512.
        exact: as in generate, for all calls of the session.

    Raises:
        TypeError: a value of a wrong type, something that is not a model.
        ValueError: a number out of range, a model that cannot be run as it is.
    """
    return Session(model, cache_bytes, max_step_tokens=max_step_tokens, exact=exact)
