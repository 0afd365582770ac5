"""Forward passes without waste, and the states they leave behind.

Prompts of one length go together, and what a group of prompts has in common at the start
(the demonstration) is run once, its key-value cache being shared.
"""

import copy
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from vecsweep.engine.batches import filled, run_batches, weight
from vecsweep.engine.load import Engine

# On a CPU plain products beat PyTorch's flash kernel up to some 200 tokens: 17 times at 28 of them
# (20 prompts, 16 heads), twice at 90.
FEW_TOKENS = 128


def first(output: Any) -> torch.Tensor:
    """The tensor of a module's output, which some families wrap in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def added(engine: Engine, output: Any) -> torch.Tensor:
    """What the output of attention or FFN adds to the stream: some blocks scale it."""
    tensor = first(output)
    return tensor if engine.update_scale == 1 else tensor * engine.update_scale


@contextmanager
def hooks(handles: list[RemovableHandle]) -> Iterator[None]:
    """Remove torch hooks on the way out, also after an error."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def captured(
    engine: Engine, ends: Sequence[int] | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield a dict that each forward fills with last-token states, name -> [batch, d_model].

    `ends` are the places of last tokens that something follows.

    Names: `resid_pre.LL`, `resid_mid.LL` (sequential blocks only), `ffn_out.LL`, `resid_post.LL`.
    `ffn_out` is the update as added to the stream: resid_mid + ffn_out = resid_post (paper
    section 2). For parallel blocks resid_pre + attn_out + ffn_out = resid_post.
    """
    states: dict[str, torch.Tensor] = {}
    handles: list[RemovableHandle] = []

    def keep(name: str, tensor: torch.Tensor) -> None:
        # OPT may flatten [batch, tokens, d] to two dimensions around its FFN.
        if tensor.dim() == 2:
            tensor = tensor.view(engine.shape[0], -1, tensor.shape[-1])
        last = tensor[:, -1] if ends is None else tensor[range(len(ends)), ends]
        states[name] = last.detach().clone()

    def output_of(name, taken=first):
        return lambda module, args, output: keep(name, taken(output))

    def input_of(name):
        def hook(module, args, kwargs):
            keep(name, args[0] if args else kwargs["hidden_states"])

        return hook

    for layer, block in enumerate(engine.blocks):
        number = f"{layer:02d}"
        handles += [
            block.register_forward_pre_hook(input_of(f"resid_pre.{number}"), with_kwargs=True),
            engine.part(layer, "ffn").register_forward_hook(
                output_of(f"ffn_out.{number}", lambda output: added(engine, output))
            ),
            block.register_forward_hook(output_of(f"resid_post.{number}")),
        ]
        if not engine.parallel:
            norm = engine.part(layer, "ffn_norm")
            hook = input_of(f"resid_mid.{number}")
            handles.append(norm.register_forward_pre_hook(hook, with_kwargs=True))
    with hooks(handles):
        yield states


def attention(engine: Engine, tokens: int) -> AbstractContextManager:
    """The faster attention for prompts of so many tokens, while it is entered."""
    few = engine.device.type == "cpu" and tokens <= FEW_TOKENS
    return sdpa_kernel(SDPBackend.MATH) if few else nullcontext()


def shared_prefix(prompts: Sequence[Sequence[int]], switch: int | None = None) -> int:
    """How many first tokens all prompts share, leaving each at least one of its own.

    None where the rotary factors of prompts longer than `switch` are others: keys and values of a
    shorter beginning are not theirs.
    """
    # What the first and the last in order share, all between them do.
    rows = sorted(list(prompt) for prompt in prompts)
    same = len(os.path.commonprefix([rows[0], rows[-1]]))
    same = min(same, min(map(len, prompts)) - 1)
    crosses = switch and same <= switch < max(map(len, prompts))
    return 0 if crosses else same


def rotary_switch(engine: Engine) -> int | None:
    """Above how many tokens in all a model's rotary factors change; None if they never do.

    LongRoPE has two sets of factors, and a whole prompt takes one (Ding et al. 2024, section 3.3).
    """
    found = getattr(engine.model.config, "rope_parameters", None) or {}
    kinds = [found, *(value for value in found.values() if isinstance(value, dict))]
    lengths = [
        kind["original_max_position_embeddings"]
        for kind in kinds
        if kind.get("rope_type") == "longrope"
    ]
    return min(lengths, default=None)


def run_decoder(
    engine: Engine,
    ids: torch.Tensor,
    past: Cache | None = None,
    start: int = 0,
    use_cache: bool = False,
) -> Any:
    """The decoder's own forward, without LM head, on ids [batch, tokens] after `start` cached ones.

    Mask and positions are passed explicitly: BLOOM's sharded alibi needs the mask.
    """
    batch, tokens = ids.shape
    engine.shape = (batch, tokens)
    kwargs = {
        "input_ids": ids,
        "attention_mask": torch.ones(batch, start + tokens, dtype=torch.long, device=ids.device),
        "past_key_values": past,
        "use_cache": use_cache or past is not None,
    }
    if "position_ids" in inspect.signature(engine.decoder.forward).parameters:
        positions = torch.arange(start, start + tokens, device=ids.device)
        kwargs["position_ids"] = positions.expand(batch, -1)
    with attention(engine, start + tokens):
        return engine.decoder(**kwargs)


@torch.inference_mode()
def last_token_batches(
    engine: Engine,
    groups: Sequence[Sequence[Sequence[int]]],
    progress: Callable[[int, int], None] = lambda prompts, tokens: None,
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """(places of some prompts, their states: name -> [places, d_model]) until all are done.

    `groups` are lists of prompts (token ids) that share their beginning; places count in that order.
    `progress(prompts, tokens)` is called after each batch with what was done in it.

    A pass over the weights costs as much as thirty tokens in it: beginnings of one length run
    together, and so do the rests that follow them, whatever groups they are of. Rests of near
    lengths are filled up to one; no token sees what follows it.
    """
    switch = rotary_switch(engine)
    offset = 0
    places: dict[int, list[list[int]]] = {}  # by the length of the beginning, each group's
    for prompts in groups:
        # A lone prompt has nothing to share.
        prefix = shared_prefix(prompts, switch) if len(prompts) > 1 else 0
        places.setdefault(prefix, []).append(list(range(offset, offset + len(prompts))))
        offset += len(prompts)
    every = [list(prompt) for prompts in groups for prompt in prompts]
    for prefix, sharing in sorted(places.items()):
        for some, cache in beginnings(engine, [every[own[0]][:prefix] for own in sharing]):
            progress(0, prefix * len(some))
            owners = [(place, row) for row, number in enumerate(some) for place in sharing[number]]
            rests = [every[place][prefix:] for place, _ in owners]
            # Above the switch, other tokens than the prompt's own would change its factors.
            lengths = [len(rest) for rest in rests] if switch else filled([*map(len, rests)])

            def run(batch, owners=owners, rests=rests, lengths=lengths, cache=cache, prefix=prefix):
                full = [rests[i] + rests[i][-1:] * (lengths[i] - len(rests[i])) for i in batch]
                ids = torch.tensor(full, device=engine.device)
                mine = [owners[i][1] for i in batch]
                past = None if cache is None else chosen(cache, mine, engine.device)
                with captured(engine, [len(rests[i]) - 1 for i in batch]) as states:
                    run_decoder(engine, ids, past, prefix)
                return {name: state.cpu() for name, state in states.items()}

            for batch, states in run_batches(engine, lengths, run, partial(weight, before=prefix)):
                yield [owners[i][0] for i in batch], states
                progress(len(batch), sum(len(rests[i]) for i in batch))


def beginnings(
    engine: Engine, starts: Sequence[list[int]]
) -> Iterator[tuple[list[int], Cache | None]]:
    """(numbers of some starts, the cache of their keys and values); all at once, None, if empty.

    `starts` are token ids, all of one length.
    """
    if not starts[0]:
        yield list(range(len(starts))), None
        return

    def run(some: list[int]) -> Cache:
        ids = torch.tensor([starts[i] for i in some], device=engine.device)
        return run_decoder(engine, ids, use_cache=True).past_key_values

    yield from run_batches(engine, [len(start) for start in starts], run)


def branched(cache: Cache) -> Cache:
    """A cache that goes on from another, which stays as it is; no tensor is copied."""
    # What a cache does to its tensors, it does by new ones.
    found = copy.copy(cache)
    found.layers = [copy.copy(layer) for layer in cache.layers]
    return found


def chosen(cache: Cache, rows: list[int], device: torch.device) -> Cache:
    """A cache of some rows of another, which stays as it is."""
    found = branched(cache)
    found.batch_select_indices(torch.tensor(rows, device=device))
    return found


def last_token_states(
    engine: Engine,
    groups: Sequence[Sequence[Sequence[int]]],
    progress: Callable[[int, int], None] = lambda prompts, tokens: None,
) -> dict[str, torch.Tensor]:
    """States at the last token of every prompt: name -> [prompts, d_model], on the CPU.

    As `last_token_batches`, all of them in memory.
    """
    total = sum(map(len, groups))
    result: dict[str, torch.Tensor] = {}
    for places, states in last_token_batches(engine, groups, progress):
        for name, state in states.items():
            if name not in result:
                result[name] = torch.empty(total, state.shape[-1], dtype=state.dtype)
            result[name][places] = state
    return result
