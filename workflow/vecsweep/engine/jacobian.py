"""The Jacobian of the last block's output with respect to earlier states, of resumed runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vecsweep.engine.edits import CleanRun, Edit, resume_at_once
from vecsweep.engine.forward import first, hooks
from vecsweep.engine.load import Engine


def jacobians(
    engine: Engine,
    clean: CleanRun,
    layers: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of J [layers, d_model, d_model], sum of J s [layers, d_model]) over a run's prompts.

    J = do/ds: o is the last block's output at the last token, s the stream after a block of `layers`
    at the token that the run is for (`last_only` from the end), all other tokens being what they
    were (Hernandez et al. 2024, section 3.1). In float32, on the model's device. One backward pass a
    row of J serves all layers and prompts; rows go together as far as `batch_tokens` goes.
    `progress(done, of)` is called with the number of rows. A block above a layer has to run, so that
    the last layer is ValueError.
    """
    if not layers or max(layers) >= len(engine.blocks) - 1:
        raise ValueError("the Jacobian is of a state below the last block's output")
    engine.model.requires_grad_(False)
    low, *others = sorted(layers)
    start = clean.outputs["block", low].clone().requires_grad_()
    seen: dict[int, torch.Tensor] = {}

    @contextmanager
    def watched() -> Iterator[None]:
        def keep(layer):
            def hook(module, args, output):
                seen[layer] = first(output)

            return hook

        handles = [engine.blocks[layer].register_forward_hook(keep(layer)) for layer in others]
        with hooks(handles), sdpa_kernel(SDPBackend.MATH):  # whose backward takes many rows at once
            yield

    edit = Edit({low: start[None]}, "replace", int(clean.last_only), "block")
    with torch.enable_grad():
        (end,) = resume_at_once(engine, clean, [edit], watched)
    prompts, size = start.shape
    found = torch.zeros(len(layers), size, size, device=start.device)
    products = torch.zeros(len(layers), size, device=start.device)
    states = [clean.outputs["block", layer].float() for layer in sorted(layers)]
    together = max(1, engine.batch_tokens // (prompts * clean.last_only))
    for begin in range(0, size, together):
        rows = range(begin, min(begin + together, size))
        asked = torch.zeros(len(rows), *end.shape, dtype=end.dtype, device=end.device)
        for i, row in enumerate(rows):
            asked[i, ..., row] = 1
        wanted = [start, *(seen[layer] for layer in others)]
        gradients = torch.autograd.grad(
            end, wanted, asked, retain_graph=rows.stop < size, is_grads_batched=True
        )
        for number, (gradient, state) in enumerate(zip(gradients, states)):
            # [rows, prompts, d_model], or with all tokens that ran again, of which the first is meant.
            own = (gradient if gradient.dim() == 3 else gradient[:, :, 0]).float()
            found[number, rows.start : rows.stop] = own.sum(1)
            products[number, rows.start : rows.stop] = torch.einsum("rpd,pd->r", own, state)
        progress(rows.stop, size)
    place = [sorted(layers).index(layer) for layer in layers]
    return found[place], products[place]
