"""Stage `ablations`: accuracy with sublayers removed, abstractive beside extractive (Figure 7)."""

import itertools
import math
import random
from functools import partial

import torch

from vecsweep import tables
from vecsweep.engine.batches import run_batches
from vecsweep.engine.edits import Edit, Sublayer, clean_runs, resume_all
from vecsweep.engine.forward import added, hooks, run_decoder
from vecsweep.engine.parts import Parts
from vecsweep.engine.plans import decoded
from vecsweep.engine.readout import target_tokens
from vecsweep.engine.running import how_it_ran, load_engine, progress_line
from vecsweep.layout import STAGES
from vecsweep.tasks.rows import CAPTURED, capped, kept_rows, prompt_groups

STEPS = 6
# (sublayer, value it is replaced by, which layers go first)
PAPER = ("ffn", "zero", "top")
TWINS = (
    ("attention", "zero", "top"),
    ("ffn", "zero", "bottom"),
    ("ffn", "zero", "random"),
    ("ffn", "mean", "top"),
)


def run(args):
    """Write table `ablations`: a row for each prompt, kind of removal and step."""
    rows = []
    for prompt_set in CAPTURED:
        kept = kept_rows(args.prompts, (prompt_set,))
        rows += capped(kept, args.settings["max_prompts"], args.settings["seed"])
    engine, readout, description = load_engine(args, rows[0]["token_ids"])
    kinds = (PAPER, *TWINS) if args.settings["twins"] else (PAPER,)
    parts = Parts.of(args, engine)
    outcomes = ablate(engine, readout, rows, kinds, args.settings["seed"], parts)
    if not engine.leader:
        return
    for outcome in outcomes:
        outcome["model"] = description["model"]
    notes = {"step_version": STAGES["ablations"].version} | how_it_ran(args, engine)
    tables.write("ablations", outcomes, args.output, notes)


def removed_layers(layers: int, step: int, order: str, seed: int) -> list[int]:
    """The `ceil(step * layers / 6)` layers removed at a step, of 0..6.

    From the top down, from the bottom up, or in one seeded random order for all steps.
    """
    sequence = list(range(layers))
    if order == "top":
        sequence.reverse()
    elif order == "random":
        random.Random(f"{seed} ablations").shuffle(sequence)
    return sorted(sequence[: math.ceil(step * layers / STEPS)])


def removal(kind: tuple[Sublayer, str, str], removed: list[int]) -> tuple:
    """What tells one removal from another: orders meet in the same layers, at the last step."""
    return kind[:2], tuple(removed)


def ablate(
    engine, readout, rows: list[dict], kinds, seed: int, parts: Parts | None = None
) -> list[dict]:
    """An outcome for each prompt (both sets), kind and step; step 0 is the clean run.

    What `parts` hold already is not run again.
    """
    parts = parts or Parts()
    layers, d_model = len(engine.blocks), engine.model.config.hidden_size
    means = mean_updates(engine, rows) if any(value == "mean" for _, value, _ in kinds) else {}
    zero = torch.zeros(1, d_model)
    progress = progress_line(len(rows), engine.leader)
    edits: dict[tuple, Edit] = {}
    uses: dict[tuple, list] = {}  # the same layers may be removed by several
    for kind, step in itertools.product(kinds, range(1, STEPS + 1)):
        removed = removed_layers(layers, step, kind[2], seed)
        vectors = {layer: means[layer] if kind[1] == "mean" else zero for layer in removed}
        edits[removal(kind, removed)] = Edit(vectors, sublayer=kind[0])
        uses.setdefault(removal(kind, removed), []).append((kind, step))
    steps = list(itertools.product(kinds, range(STEPS + 1)))

    def finished(some, numbers):
        return all(parts.has(f"{numbers} {' '.join(kind)} {step}") for kind, step in some)

    def removed_already(numbers, edit):
        return finished(list(uses.values())[edit], numbers)

    def pieces():
        offset = 0
        for group in prompt_groups(rows):
            members = rows[offset : offset + len(group)]
            offset += len(group)
            targets = target_tokens(members)
            places = range(offset - len(group), offset)

            def done(rows, places=places):
                return finished(steps, [places[i] for i in rows])

            for clean in clean_runs(engine, group, 1, done=done):
                numbers = [places[i] for i in clean.rows]
                chosen = [members[i] for i in clean.rows]
                tokens = [t[clean.rows] for t in targets]
                runs = resume_all(
                    *(engine, clean, list(edits.values())),
                    partial(removed_already, numbers),
                )
                states = dict(zip(edits, runs))
                for kind, step in steps:
                    removed = removed_layers(layers, step, kind[2], seed)
                    after = states[removal(kind, removed)] if removed else [clean.last]
                    state = None if after is None else after[0]
                    name = f"{numbers} {' '.join(kind)} {step}"
                    yield state, tokens, (chosen, kind, step, len(removed)), name
                progress(len(chosen), sum(len(row["token_ids"]) for row in chosen))

    return [
        {key: row[key] for key in ("task", "prompt_set", "prompt_id")}
        | {
            "sublayer": kind[0],
            "value": kind[1],
            "order": kind[2],
            "step": step,
            "removed_layers": removed,
            "fraction": removed / layers,
            "rank": rank,
            "correct": rank == 0,
        }
        for (chosen, kind, step, removed), ranks, _, _ in decoded(readout, pieces(), parts=parts)
        for row, (_, rank) in zip(chosen, ranks)
    ]


def mean_updates(engine, rows: list[dict]) -> dict:
    """layer -> FFN update [1, d_model], the mean over all tokens but the first of all prompts.

    The first token gathers attention that goes nowhere; its updates are up to a hundred times as
    long as the others', and the mean over all would be theirs.
    """
    sums: dict[int, torch.Tensor] = {}
    found: dict[int, torch.Tensor] = {}
    count = 0

    def add(layer):
        def hook(module, args, output):
            # OPT may flatten [batch, tokens, d] to two dimensions around its FFN.
            update = added(engine, output).float().view(*engine.shape, -1)[:, 1:]
            found[layer] = update.flatten(0, 1).sum(0, keepdim=True).cpu()

        return hook

    prompts = [row["token_ids"] for row in rows]
    handles = [
        engine.part(layer, "ffn").register_forward_hook(add(layer))
        for layer in range(len(engine.blocks))
    ]

    def run(batch):
        found.clear()  # of a batch that did not fit
        run_decoder(engine, torch.tensor([prompts[i] for i in batch], device=engine.device))
        return dict(found)

    with hooks(handles), torch.inference_mode():
        for batch, totals in run_batches(engine, [len(p) for p in prompts], run):
            sums = {layer: sums.get(layer, 0) + total for layer, total in totals.items()}
            count += sum(len(prompts[i]) - 1 for i in batch)
    return {layer: total / count for layer, total in sums.items()}
