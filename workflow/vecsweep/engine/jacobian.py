"""The Jacobian of the last block's output with respect to earlier states, of resumed runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vecsweep.engine.batches import at_once, fitted, halve
from vecsweep.engine.edits import CleanRun, Edit, resume_at_once
from vecsweep.engine.forward import first, hooks
from vecsweep.engine.load import Engine
from vecsweep.engine.parts import Parts


def jacobians(
    engine: Engine,
    clean: CleanRun,
    layers: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, of: None,
    parts: Parts | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of J [layers, d_model, d_model], sum of J s [layers, d_model]) over a run's prompts.

    J = do/ds: o is the last block's output at the last token, s the stream after a block of `layers`
    at the token that the run is for (`last_only` from the end), all other tokens being what they
    were (Hernandez et al. 2024, section 3.1). In float32, on the model's device. One backward pass a
    row of J serves all layers and prompts; rows go together as far as `batch_tokens` and memory go.
    `progress(done, of)` is called with the number of rows; those that `parts` hold are not taken
    again. A block above a layer has to run, so that the last layer is ValueError.
    """
    if not layers or max(layers) >= len(engine.blocks) - 1:
        raise ValueError("the Jacobian is of a state below the last block's output")
    engine.model.requires_grad_(False)
    parts = parts or Parts()
    section = parts.section()
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

    prompts, size = start.shape
    states = [clean.outputs["block", layer].float() for layer in sorted(layers)]
    tokens = prompts * clean.last_only
    edit = Edit({low: start[None]}, "replace", int(clean.last_only), "block")

    @torch.enable_grad()
    def forward() -> torch.Tensor:
        return resume_at_once(engine, clean, [edit], watched)[0]

    end: torch.Tensor | None = None

    def taken(rows: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over the prompts, of some rows: J [rows, layers, d_model], J s [rows, layers]."""
        assert end is not None
        asked = torch.zeros(len(rows), *end.shape, dtype=end.dtype, device=end.device)
        for i, row in enumerate(rows):
            asked[i, ..., row] = 1
        wanted = [start, *(seen[layer] for layer in others)]
        gradients = torch.autograd.grad(
            end, wanted, asked, retain_graph=True, is_grads_batched=True
        )
        sums, products = [], []
        for gradient, state in zip(gradients, states):
            # [rows, prompts, d_model], or with all tokens that ran again, of which the first is meant.
            own = (gradient if gradient.dim() == 3 else gradient[:, :, 0]).float()
            sums.append(own.sum(1))
            products.append(torch.einsum("rpd,pd->r", own, state))
        return torch.stack(sums, 1).cpu(), torch.stack(products, 1).cpu()

    found = torch.zeros(len(layers), size, size, device=start.device)
    products = torch.zeros(len(layers), size, device=start.device)
    begin = 0
    while begin < size:
        together = max(1, engine.batch_tokens // tokens)
        rows = range(begin, min(begin + together, size))
        name = f"{section}{rows.start}-{rows.stop}"
        some = parts.found(name)
        if some is None:
            end = at_once(engine, tokens, forward) if end is None else end
            some = fitted(partial(taken, rows))
            if some is None:
                halve(engine, len(rows), len(rows) * tokens)
                continue
            parts.keep(name, some, "jacobians")
            parts.write()
        found[:, rows.start : rows.stop] = some[0].transpose(0, 1)
        products[:, rows.start : rows.stop] = some[1].T
        begin = rows.stop
        progress(begin, size)
    place = [sorted(layers).index(layer) for layer in layers]
    return found[place], products[place]
