"""Edits of a sublayer's output, and runs that resume where the edit starts.

The layers below an edit see what they saw in the clean run, so a sweep over start layers runs
the clean prompt once and, for each start layer, only the blocks from there on; as many of these as
fit go through a block together. Nor does an edit of
the last token alone change what the tokens before it are: where all edits are such, their keys and
values are kept, and only the last token runs again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch.utils.hooks import RemovableHandle
from transformers import Cache, DynamicCache

from vecsweep import Problem
from vecsweep.engine.batches import at_once, fitted, halve, run_batches, weight
from vecsweep.engine.forward import (
    added,
    attention,
    branched,
    chosen,
    first,
    hooks,
    rotary_switch,
    run_decoder,
    shared_prefix,
)
from vecsweep.engine.load import Engine

Sublayer = Literal["ffn", "attention", "block"]
SUBLAYERS: tuple[Sublayer, ...] = get_args(Sublayer)
# What prompts give each other, by its name in tables: `state` is all that the stream holds after the
# block.
PARTS: dict[str, Sublayer] = {"ffn": "ffn", "attention": "attention", "state": "block"}
# A shorter common beginning is not worth a forward pass of its own.
SHORTEST_PREFIX = 4


@dataclass(frozen=True)
class Edit:
    """Replace the output of a sublayer, or add to it, at some layers.

    `vectors` maps layer -> [variants, d_model], or [variants, prompts, d_model] where each prompt
    gets its own: each variant is one run. `position` is all tokens, the last, or the n-th from the
    end (1 is the last). Of `block`, the output is the residual stream after it. An FFN that is
    replaced at all tokens is not computed. Dropping a sublayer is replacing it by zero.
    """

    vectors: dict[int, torch.Tensor]
    mode: Literal["replace", "add"] = "replace"
    position: Literal["all", "last"] | int = "all"
    sublayer: Sublayer = "ffn"

    @property
    def from_end(self) -> int | None:
        """Which token it changes, 1 being the last; None: all."""
        if isinstance(self.position, int):
            return self.position
        return 1 if self.position == "last" else None

    @property
    def variants(self) -> int:
        return len(next(iter(self.vectors.values())))

    @property
    def lowest(self) -> int:
        """The first layer that it changes."""
        return min(self.vectors)


@contextmanager
def applied(
    engine: Engine, edits: Sequence[Edit], prompts: int, has_last: bool = True
) -> Iterator[None]:
    """Apply edits to forwards of [variants * prompts, tokens], variant by variant, edit by edit.

    The edits stand in the order of their lowest layers; a layer sees the runs of those that began
    there or below. `has_last` says whether the last token of the prompts is in the pass. Problem if
    an edited module did not run just once a forward: an edit that fires twice would be applied twice.
    """
    handles: list[RemovableHandle] = []
    patched: list[tuple[Any, Any]] = []  # (module, its own forward if it had one)
    places = _places(edits, has_last)
    count = dict.fromkeys(places, 0)

    def rows_of(tensor: torch.Tensor, layer: int) -> torch.Tensor:
        # OPT may flatten [batch, tokens, d] to two dimensions around its FFN.
        return tensor.view(_running(edits, layer) * prompts, -1, tensor.shape[-1])

    def change(key: tuple[Sublayer, int], rows: torch.Tensor) -> None:
        count[key] += 1
        for begin, edit in places[key]:
            some = rows[begin * prompts : (begin + edit.variants) * prompts]
            if edit.from_end is not None:
                some = some[:, some.shape[1] - edit.from_end][:, None]
            given = edit.vectors[key[1]].to(rows)
            own = given.dim() == 3  # a vector a prompt
            vector = (given.flatten(0, 1) if own else given.repeat_interleave(prompts, 0))[:, None]
            if key[0] != "block" and engine.update_scale != 1:
                vector = vector / engine.update_scale  # the block multiplies by it again
            if edit.mode == "replace":
                some.copy_(vector)
            else:
                some.add_(vector)

    def hook(key: tuple[Sublayer, int]) -> Callable:
        def changed(module, args, output):
            new = first(output).clone()  # some blocks add to it in place
            change(key, rows_of(new, key[1]))
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return changed

    def patch(module: Any, forward: Callable) -> None:
        patched.append((module, vars(module).get("forward")))
        module.forward = forward

    def skip(layer: int, replaced: list[int]) -> None:
        """Compute an FFN for those variants alone that are not replaced, if there are any."""
        key: tuple[Sublayer, int] = ("ffn", layer)
        module: Any = engine.part(layer, "ffn")
        inner: Any = engine.part(layer, "bypass") if engine.family.bypass else None
        running = _running(edits, layer)
        kept = sorted({*range(running)} - {*replaced})
        chosen = torch.tensor([v * prompts + i for v in kept for i in range(prompts)]).long()
        chosen = chosen.to(engine.device)
        own, own_inner = module.forward, inner and inner.forward

        def narrowed(x):
            rows = rows_of(x, layer)[chosen]
            return rows.flatten(0, 1) if x.dim() == 2 else rows

        def whole(*args, **named):
            x = args[0] if args else named.pop("hidden_states")
            if kept:
                some = own(x if inner else narrowed(x), *args[1:], **named)
                pair, some = isinstance(some, tuple), first(some)
                parts = some.view(len(chosen), -1, some.shape[-1])
                rows = parts.new_empty(running * prompts, *parts.shape[1:])
                rows[chosen] = parts
            else:  # the bypassed and the replaced module hand on a tensor of the right shape
                some, rows = x, rows_of(torch.empty_like(x), layer)
                pair = layer in engine.pairs
            change(key, rows)
            rows = rows.flatten(0, 1) if some.dim() == 2 else rows
            return (rows, None) if pair else rows  # what else it gives no block uses

        patch(module, whole)
        if inner:
            patch(inner, (lambda x: own_inner(narrowed(x))) if kept else (lambda x: x))

    try:
        for (sublayer, layer), found in places.items():
            replaced = [
                variant
                for begin, edit in found
                if edit.mode == "replace" and edit.position == "all"
                for variant in range(begin, begin + edit.variants)
            ]
            if sublayer == "ffn" and replaced:
                skip(layer, replaced)
            else:
                handle = engine.part(layer, sublayer).register_forward_hook(hook((sublayer, layer)))
                handles.append(handle)
        with hooks(handles):
            yield
    finally:
        for module, own in patched:
            del module.forward
            if own is not None:  # DeepSpeed's, on this very module
                module.forward = own
    if wrong := [key for key, times in count.items() if times != 1]:
        sublayer, layer = wrong[0]
        raise Problem(
            f"the {sublayer} of layer {layer} ran {count[wrong[0]]} times in one forward, "
            "not once; correct the family's row in workflow/vecsweep/engine/families.py"
        )


def _running(edits: Sequence[Edit], layer: int) -> int:
    """Variants that a layer sees: of the edits that begin there or below."""
    return sum(edit.variants for edit in edits if edit.lowest <= layer)


def _places(edits: Sequence[Edit], has_last: bool) -> dict[tuple[Sublayer, int], list]:
    """(sublayer, layer) -> (its first variant, edit) of the edits that change it."""
    places: dict[tuple[Sublayer, int], list] = {}
    begin = 0
    for edit in edits:
        if has_last or edit.position == "all":
            for layer in edit.vectors:
                places.setdefault((edit.sublayer, layer), []).append((begin, edit))
        begin += edit.variants
    return places


Call = tuple[tuple, dict[str, Any]]  # the arguments of a block


@dataclass
class CleanRun:
    """An unedited run of prompts of one length: what every block was called with.

    `rows` are the prompts' places in the list given, `tokens` how many each has behind the shared
    beginning; `weight` is what an edited run of one takes of batch_tokens, `beginning` how many tokens
    it runs again for all of them; `last` [prompts, d_model] is the last block's output at the last
    token; `calls` and `prefix_calls` (None without a shared beginning) hold each block's arguments.

    Of a run for edits of the `last_only` last tokens alone (1 where it is true, 0: of all tokens)
    `calls` are those of these tokens, `earlier` the keys and values of all tokens before them (None
    if there are none), `outputs` what each sublayer of each layer gave at the first of them,
    [prompts, d_model].
    """

    rows: list[int]
    tokens: int
    weight: int
    beginning: int
    last: torch.Tensor
    calls: list[Call]
    prefix_calls: list[Call] | None
    last_only: int = 0
    earlier: Cache | None = None
    outputs: dict[tuple[Sublayer, int], torch.Tensor] = field(default_factory=dict)

    @property
    def each(self) -> int:
        """What one variant of an edit takes of batch_tokens."""
        return max(1, len(self.rows) * self.weight, self.beginning)


@contextmanager
def _recorded(engine: Engine) -> Iterator[list[Call]]:
    calls: list[Call] = []

    def kept(value: Any) -> Any:
        # Runs that resume bring their own; that of the clean run would be held as long as its calls.
        return Cache(layers=[]) if isinstance(value, Cache) else value

    def record(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append((tuple(map(kept, args)), {name: kept(v) for name, v in kwargs.items()}))

    def note(layer: int) -> Callable:
        def see(module, args, output):
            if isinstance(output, tuple):
                engine.pairs.add(layer)

        return see

    handles = [b.register_forward_pre_hook(record, with_kwargs=True) for b in engine.blocks]
    for layer in range(len(engine.blocks)):
        handles.append(engine.part(layer, "ffn").register_forward_hook(note(layer)))
    with hooks(handles):
        yield calls


@contextmanager
def _given(engine: Engine, wanted: int) -> Iterator[dict[tuple[Sublayer, int], torch.Tensor]]:
    """What each sublayer gives at the n-th token from the end, if one is wanted."""
    outputs: dict[tuple[Sublayer, int], torch.Tensor] = {}
    handles = []
    for layer in range(len(engine.blocks)) if wanted else ():
        for sublayer in SUBLAYERS:

            def keep(module, args, output, key=(sublayer, layer)):
                whole = first(output) if key[0] == "block" else added(engine, output)
                outputs[key] = whole.view(engine.shape[0], -1, whole.shape[-1])[:, -wanted].clone()

            handles.append(engine.part(layer, sublayer).register_forward_hook(keep))
    with hooks(handles):
        yield outputs


@torch.no_grad()  # not inference mode: gradients may be taken through what is recorded
def clean_runs(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    variants: int,
    last_only: int = False,
    done: Callable[[list[int]], bool] = lambda rows: False,
) -> Iterator[CleanRun]:
    """Clean runs of all prompts (token ids), in batches that `variants` times fit batch_tokens.

    With `last_only` they serve edits of the last token alone, or of so many last ones, which then
    run no other one again (but where these change the rotary factors of all). Each prompt has that
    many. Batches of which `done(rows)` says that nothing is wanted do not run: their `calls` are
    empty.
    """
    switch = rotary_switch(engine)
    prefix = min(shared_prefix(prompts, switch), min(map(len, prompts)) - last_only)
    prefix_calls = cache = None
    if prefix < SHORTEST_PREFIX:
        prefix = 0
    else:
        ids = torch.tensor([list(prompts[0][:prefix])], device=engine.device)
        with _recorded(engine) as prefix_calls:
            begin = partial(run_decoder, engine, ids, use_cache=True)
            cache = at_once(engine, prefix, begin).past_key_values
    rests = [list(p[prefix:]) for p in prompts]

    # Of a prompt with so many tokens behind the beginning: how many last ones an edited run runs
    # alone (0: all run), what that takes of batch_tokens, and what the prompt takes at most.
    def alone_in(tokens: int) -> int:
        whole = prefix + tokens
        return 0 if switch and whole - last_only <= switch < whole else last_only

    def taken(tokens: int) -> int:
        running = alone_in(tokens) or tokens
        return weight(running, prefix + tokens - running)

    def most(tokens: int) -> int:
        return max(weight(tokens, prefix), variants * taken(tokens))

    def run(rows: list[int]) -> CleanRun:
        ids = torch.tensor([rests[i] for i in rows], device=engine.device)
        past, start, tokens = None, prefix, ids.shape[1]
        if done(rows):
            return CleanRun(rows, tokens, 0, 0, torch.empty(0), [], None)
        if cache is not None:
            past = chosen(cache, [0] * len(rows), engine.device)
        alone = alone_in(tokens)
        if alone and tokens > alone:
            before, ids = ids[:, :-alone], ids[:, -alone:]
            past = run_decoder(engine, before, past, start, use_cache=True).past_key_values
            start += before.shape[1]
        earlier = None if past is None or not alone else branched(past)  # the run adds tokens
        output: list[torch.Tensor] = []
        keep = engine.blocks[-1].register_forward_hook(
            lambda module, args, out, output=output: output.append(first(out)[:, -1])
        )
        with _recorded(engine) as calls, hooks([keep]), _given(engine, last_only) as outputs:
            run_decoder(engine, ids, past, start)
        again = None if alone else prefix_calls
        takes = taken(tokens), prefix if again else 0
        return CleanRun(rows, tokens, *takes, output[0], calls, again, alone, earlier, outputs)

    for _, clean in run_batches(engine, [len(r) for r in rests], run, most):
        yield clean


def given_by(runs: Sequence[CleanRun], sublayer: Sublayer, layer: int) -> torch.Tensor:
    """What a sublayer gave at the token that clean runs are for, [prompts, d_model] in their order."""
    place = torch.tensor([row for run in runs for row in run.rows]).argsort()
    given = torch.cat([run.outputs[sublayer, layer] for run in runs])
    return given[place.to(given.device)]


def resume(engine: Engine, clean: CleanRun, edit: Edit) -> torch.Tensor:
    """The last block's output at the last token under an edit: [variants, prompts, d_model]."""
    return next(resume_all(engine, clean, [edit]))


def resume_all(
    engine: Engine,
    clean: CleanRun,
    edits: Sequence[Edit],
    done: Callable[[int], bool] = lambda number: False,
) -> Iterator[Any]:
    """The same of several edits, in their order: as many run in one pass over the weights as fit.

    Each starts from the clean input of the lowest block that it changes; there its runs join those
    that are under way. A pass of which `done(number)` is true for all edits does not run, and gives
    None for each; others run whole, so that no number hangs on what was done before. ValueError if
    a run for edits of the last tokens is given one of others.
    """
    for edit in edits:
        if clean.last_only and not (edit.from_end and edit.from_end <= clean.last_only):
            raise ValueError(f"this run is for edits of the last tokens: {int(clean.last_only)}")
        if (edit.from_end or 1) > clean.tokens:
            raise ValueError("this edit is of the beginning that the prompts share")
    start = 0
    while start < len(edits):
        room = engine.batch_tokens // clean.each
        stop, variants = start + 1, edits[start].variants
        while stop < len(edits) and variants + edits[stop].variants <= room:
            variants += edits[stop].variants
            stop += 1
        if all(done(number) for number in range(start, stop)):
            yield from [None] * (stop - start)
        elif stop - start == 1:
            yield _fitting(engine, clean, edits[start])
        else:
            some = edits[start:stop]
            states = fitted(partial(_resume, engine, clean, some))
            if states is None:
                halve(engine, variants, variants * clean.each)
                continue
            yield from states
        start = stop


def _fitting(engine: Engine, clean: CleanRun, edit: Edit) -> torch.Tensor:
    """One edit's runs, in as many passes as memory asks for."""
    variants, prompts = edit.variants, len(clean.rows)
    passes, tokens = variants * prompts, variants * clean.each
    if variants == 1:  # the beginning runs whole, of however few prompts
        tokens = prompts * clean.weight
    if passes == 1 or tokens <= engine.batch_tokens:
        states = fitted(lambda: _resume(engine, clean, [edit]))
        if states is not None:
            return states[0]
        halve(engine, passes, tokens)
    if variants > 1:
        cuts = [slice(0, variants // 2), slice(variants // 2, variants)]
        halves = [
            replace(edit, vectors={layer: v[cut] for layer, v in edit.vectors.items()})
            for cut in cuts
        ]
        return torch.cat([_fitting(engine, clean, half) for half in halves])
    cuts = [slice(0, prompts // 2), slice(prompts // 2, prompts)]
    states = []
    for cut in cuts:
        vectors = {i: v[:, cut] if v.dim() == 3 else v for i, v in edit.vectors.items()}
        states.append(
            _fitting(engine, _of_rows(engine, clean, cut), replace(edit, vectors=vectors))
        )
    return torch.cat(states, 1)


def _of_rows(engine: Engine, clean: CleanRun, cut: slice) -> CleanRun:
    """A clean run of some of its prompts."""
    prompts = len(clean.rows)
    heads = engine.model.config.num_attention_heads // engine.head_shards

    def narrowed(value: Any, each: int = 1) -> Any:
        if isinstance(value, tuple):
            return tuple(narrowed(v) for v in value)
        if torch.is_tensor(value) and value.dim() > 1 and len(value) == prompts * each:
            return value[cut.start * each : cut.stop * each]
        return value

    calls = [
        (
            narrowed(args),
            {
                name: value
                if name in engine.family.shared
                else narrowed(value, heads if name in engine.family.per_head else 1)
                for name, value in named.items()
            },
        )
        for args, named in clean.calls
    ]
    kept = list(range(prompts))[cut]
    earlier = clean.earlier and chosen(clean.earlier, kept, engine.device)
    return replace(clean, rows=clean.rows[cut], last=clean.last[cut], calls=calls, earlier=earlier)


@torch.inference_mode()
def _resume(engine: Engine, clean: CleanRun, edits: Sequence[Edit]) -> list[torch.Tensor]:
    return resume_at_once(engine, clean, edits)


def resume_at_once(
    engine: Engine, clean: CleanRun, edits: Sequence[Edit], within: Callable = nullcontext
) -> list[torch.Tensor]:
    """`resume_all` in one pass, through which gradients may be taken; `within` is entered for it."""
    order = sorted(range(len(edits)), key=lambda i: edits[i].lowest)
    joining, prompts = [edits[i] for i in order], len(clean.rows)
    cache = None
    if clean.earlier is not None:
        cache = branched(clean.earlier)
        each = torch.arange(prompts, device=engine.device)
        cached: list[Any] = cache.layers
        for number, layer in enumerate(cached):
            if (running := _running(joining, number)) > 1:  # those below do not run
                layer.batch_select_indices(each.repeat(running))
    elif clean.prefix_calls:
        cache = DynamicCache(config=engine.model.config)
        with applied(engine, joining, 1, has_last=False):
            _run_blocks(engine, clean.prefix_calls, joining, 1, cache)
        cache.batch_repeat_interleave(prompts)
    with applied(engine, joining, prompts), within():
        last = _run_blocks(engine, clean.calls, joining, prompts, cache)[:, -1]
    states = last.view(-1, prompts, last.shape[-1]).split([edit.variants for edit in joining])
    return [state for _, state in sorted(zip(order, states), key=lambda pair: pair[0])]


def _widened(value: Any, variants: int, rows: int, cache: Cache | None) -> Any:
    """An argument of a block for so many variants of `rows` prompts; the cache is theirs."""
    # No function inside another: one that calls itself holds its cache until garbage is collected.
    if isinstance(value, Cache):
        return cache
    if isinstance(value, tuple):
        return tuple(_widened(v, variants, rows, cache) for v in value)
    if torch.is_tensor(value) and value.dim() > 1 and len(value) == rows:
        return value.repeat(variants, *[1] * (value.dim() - 1))
    return value  # what all prompts share


def _run_blocks(
    engine: Engine, calls: list[Call], edits: Sequence[Edit], prompts: int, cache: Cache | None
) -> torch.Tensor:
    """Run the blocks from the lowest edit on, on copies of the recorded batch: one a variant."""
    heads = engine.model.config.num_attention_heads // engine.head_shards

    hidden: Any = None
    before = 0 if cache is None else cache.get_seq_length(len(engine.blocks) - 1)
    for layer, (block, (args, kwargs)) in enumerate(zip(engine.blocks, calls)):
        running = _running(edits, layer)
        if not running:
            continue
        joined = running - (0 if hidden is None else len(hidden) // prompts)
        given, named = list(args), dict(kwargs)
        recorded = given.pop(0) if given else named.pop("hidden_states")
        if joined:  # they begin with what the block was given in the clean run
            new = _widened(recorded, joined, prompts, cache)
            hidden = new if hidden is None else torch.cat([hidden, new])
        family = engine.family
        named = {
            name: value
            if name in family.shared
            else _widened(
                value, running, prompts * heads if name in family.per_head else prompts, cache
            )
            for name, value in named.items()
        }
        given = [_widened(value, running, prompts, cache) for value in given]
        with attention(engine, before + hidden.shape[1]):
            if args:
                hidden = first(block(hidden, *given, **named))
            else:
                hidden = first(block(hidden_states=hidden, **named))
    return hidden
