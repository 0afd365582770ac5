"""Edits of a sublayer's output, and runs that resume where the edit starts.

The layers below an edit see what they saw in the clean run, so a sweep over start layers runs
the clean prompt once and, for each start layer, only the blocks from there on. Nor does an edit of
the last token alone change what the tokens before it are: where all edits are such, their keys and
values are kept, and only the last token runs again.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch.utils.hooks import RemovableHandle
from transformers import Cache, DynamicCache

from vecsweep import Problem
from vecsweep.engine.forward import (
    equal_length_batches,
    first,
    hooks,
    run_decoder,
    shared_prefix,
)
from vecsweep.engine.load import Engine

Sublayer = Literal["ffn", "attention", "block"]
SUBLAYERS: tuple[Sublayer, ...] = get_args(Sublayer)
# A shorter common beginning is not worth a forward pass of its own.
SHORTEST_PREFIX = 4


@dataclass(frozen=True)
class Edit:
    """Replace the output of a sublayer, or add to it, at some layers.

    `vectors` maps layer -> [variants, d_model]: each variant is one run. `position` is all tokens
    or the last. Of `block`, the output is the residual stream after it. A replaced FFN is not
    computed. Dropping a sublayer is replacing it by zero.
    """

    vectors: dict[int, torch.Tensor]
    mode: Literal["replace", "add"] = "replace"
    position: Literal["all", "last"] = "all"
    sublayer: Sublayer = "ffn"

    @property
    def variants(self) -> int:
        return len(next(iter(self.vectors.values())))


@contextmanager
def applied(engine: Engine, edit: Edit, prompts: int, has_last: bool = True) -> Iterator[None]:
    """Apply an edit to forwards of [variants * prompts, tokens], variant by variant.

    `has_last` says whether the last token of the prompts is in the pass. Problem if an edited
    module did not run just once a forward: an edit that fires twice would be applied twice.
    """
    if edit.position == "last" and not has_last:
        yield
        return
    handles: list[RemovableHandle] = []
    patched: list[tuple[Any, Any]] = []  # (module, its own forward if it had one)
    count = dict.fromkeys(edit.vectors, 0)

    def changed(layer: int, output: torch.Tensor) -> torch.Tensor:
        count[layer] += 1
        vector = edit.vectors[layer].to(output).repeat_interleave(prompts, 0)[:, None]
        shape = output.shape
        # OPT may flatten [batch, tokens, d] to two dimensions around its FFN.
        output = output.view(len(vector), -1, shape[-1])
        if edit.position == "last":
            before, last = output[:, :-1], output[:, -1:]
            last = vector if edit.mode == "replace" else last + vector
            output = torch.cat([before, last], 1)
        else:
            # Copied, since some blocks add to it in place.
            replaced = edit.mode == "replace"
            output = vector.expand_as(output).clone() if replaced else output + vector
        return output.reshape(shape)

    def hook(layer: int) -> Callable:
        def change(module, args, output):
            new = changed(layer, first(output))
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return change

    try:
        for layer in edit.vectors:
            module: Any = engine.part(layer, edit.sublayer)
            if edit.sublayer == "ffn" and edit.mode == "replace" and edit.position == "all":
                # The bypassed and the replaced module hand on a tensor of the right shape.
                patched.append((module, vars(module).get("forward")))
                module.forward = lambda x, *args, layer=layer: changed(layer, x)
                if engine.family.bypass:
                    inner: Any = engine.part(layer, "bypass")
                    patched.append((inner, vars(inner).get("forward")))
                    inner.forward = lambda x: x
            else:
                handles.append(module.register_forward_hook(hook(layer)))
        with hooks(handles):
            yield
    finally:
        for module, own in patched:
            del module.forward
            if own is not None:  # DeepSpeed's, on this very module
                module.forward = own
    if wrong := [layer for layer, times in count.items() if times != 1]:
        raise Problem(
            f"the {edit.sublayer} of layer {wrong[0]} ran {count[wrong[0]]} times in one forward, "
            "not once; correct the family's row in workflow/vecsweep/engine/families.py"
        )


Call = tuple[tuple, dict[str, Any]]  # the arguments of a block


@dataclass
class CleanRun:
    """An unedited run of prompts of one length: what every block was called with.

    `rows` are the prompts' places in the list given; `last` [prompts, d_model] the last block's
    output at the last token; `calls` and `prefix_calls` (None without a shared beginning) hold
    each block's arguments.

    Of a run for edits of the last token `calls` are those of that token alone, `earlier` the keys
    and values of all tokens before it (None if there are none), `outputs` what each sublayer of
    each layer gave at it, [prompts, d_model].
    """

    rows: list[int]
    last: torch.Tensor
    calls: list[Call]
    prefix_calls: list[Call] | None
    last_only: bool = False
    earlier: Cache | None = None
    outputs: dict[tuple[Sublayer, int], torch.Tensor] = field(default_factory=dict)


@contextmanager
def _recorded(engine: Engine) -> Iterator[list[Call]]:
    calls: list[Call] = []

    def record(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    with hooks([b.register_forward_pre_hook(record, with_kwargs=True) for b in engine.blocks]):
        yield calls


@contextmanager
def _given(engine: Engine, wanted: bool) -> Iterator[dict[tuple[Sublayer, int], torch.Tensor]]:
    """What each sublayer gives at the last token, if wanted."""
    outputs: dict[tuple[Sublayer, int], torch.Tensor] = {}
    handles = []
    for layer in range(len(engine.blocks)) if wanted else ():
        for sublayer in SUBLAYERS:

            def keep(module, args, output, key=(sublayer, layer)):
                whole = first(output)
                outputs[key] = whole.view(engine.shape[0], -1, whole.shape[-1])[:, -1].clone()

            handles.append(engine.part(layer, sublayer).register_forward_hook(keep))
    with hooks(handles):
        yield outputs


@torch.inference_mode()
def clean_runs(
    engine: Engine, prompts: Sequence[Sequence[int]], variants: int, last_only: bool = False
) -> Iterator[CleanRun]:
    """Clean runs of all prompts (token ids), in batches that `variants` times fit batch_tokens.

    With `last_only` they serve edits of the last token alone, which then run no other one again.
    """
    prefix = shared_prefix(prompts)
    prefix_calls = cache = None
    if prefix < SHORTEST_PREFIX:
        prefix = 0
    else:
        ids = torch.tensor([list(prompts[0][:prefix])], device=engine.device)
        with _recorded(engine) as prefix_calls:
            cache = run_decoder(engine, ids, use_cache=True).past_key_values
    rests = [list(p[prefix:]) for p in prompts]
    size = max(1, engine.batch_tokens // max(1, variants))
    for rows in equal_length_batches([len(r) for r in rests], size):
        ids = torch.tensor([rests[i] for i in rows], device=engine.device)
        past, start = copy.deepcopy(cache), prefix
        if past is not None:
            past.batch_repeat_interleave(len(rows))
        if last_only and ids.shape[1] > 1:
            before, ids = ids[:, :-1], ids[:, -1:]
            past = run_decoder(engine, before, past, start, use_cache=True).past_key_values
            start += before.shape[1]
        earlier = copy.deepcopy(past) if last_only else None  # the run adds the last token to it
        output: list[torch.Tensor] = []
        keep = engine.blocks[-1].register_forward_hook(
            lambda module, args, out, output=output: output.append(first(out)[:, -1])
        )
        with _recorded(engine) as calls, hooks([keep]), _given(engine, last_only) as outputs:
            run_decoder(engine, ids, past, start)
        again = None if last_only else prefix_calls
        yield CleanRun(rows, output[0], calls, again, last_only, earlier, outputs)


@torch.inference_mode()
def resume(engine: Engine, clean: CleanRun, edit: Edit) -> torch.Tensor:
    """The last block's output at the last token under an edit: [variants, prompts, d_model].

    Starts from the clean input of the lowest edited block. ValueError if a run for edits of the
    last token is given an edit of all.
    """
    prompts, variants = len(clean.rows), edit.variants
    if clean.last_only and edit.position != "last":
        raise ValueError("this clean run is for edits of the last token")
    cache = None
    if clean.earlier is not None:
        cache = copy.deepcopy(clean.earlier)
        each = torch.arange(prompts, device=engine.device).repeat(variants)
        layers: Any = cache.layers[min(edit.vectors) :]  # those below do not run
        for layer in layers:
            layer.batch_select_indices(each)
    elif clean.prefix_calls:
        cache = DynamicCache(config=engine.model.config)
        with applied(engine, edit, 1, has_last=False):
            _run_blocks(engine, clean.prefix_calls, min(edit.vectors), variants, 1, cache)
        cache.batch_repeat_interleave(prompts)
    with applied(engine, edit, prompts):
        hidden = _run_blocks(engine, clean.calls, min(edit.vectors), variants, prompts, cache)
    return hidden[:, -1].view(variants, prompts, -1)


def _run_blocks(
    engine: Engine, calls: list[Call], start: int, variants: int, prompts: int, cache: Cache | None
) -> torch.Tensor:
    """Run the blocks from `start` on, on `variants` copies of the recorded batch."""
    heads = engine.model.config.num_attention_heads // engine.head_shards

    def widened(value: Any, rows: int = prompts) -> Any:
        if isinstance(value, Cache):
            return cache
        if isinstance(value, tuple):
            return tuple(widened(v) for v in value)
        if torch.is_tensor(value) and value.dim() > 1 and len(value) == rows:
            return value.repeat(variants, *[1] * (value.dim() - 1))
        return value  # what all prompts share

    hidden: Any = None  # of the first block that runs, its recorded input
    for block, (args, kwargs) in list(zip(engine.blocks, calls))[start:]:
        given = [widened(value) for value in args]
        named = {
            name: widened(value, prompts * heads if name in engine.family.per_head else prompts)
            for name, value in kwargs.items()
        }
        if hidden is not None and given:
            given[0] = hidden
        elif hidden is not None:
            named["hidden_states"] = hidden
        hidden = first(block(*given, **named))
    return hidden
