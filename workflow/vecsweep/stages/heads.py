"""Stage `heads`: how far each attention head carries the task, and function vectors of those that do."""

import sys

import torch

from vecsweep import tables, tasks
from vecsweep.engine.parts import Parts
from vecsweep.engine.running import how_it_ran, load_engine, progress_line
from vecsweep.files import leads, once, write_tensors
from vecsweep.layout import STAGES
from vecsweep.methods import heads
from vecsweep.tasks.readers import Reader
from vecsweep.tasks.shots import draw, train_pool


def run(args):
    """Write table `heads`, a row for each layer and head, and tensor `function_vector` [d_model].

    Both are empty where there is no function vector; a line says why.
    """
    reader = once(args, Reader.of, args.model, args.tokenizer)
    task = tasks.load(args.settings.get("file") or args.task, args.settings["task"])
    pool = train_pool(args.prompts, args.elsewhere)
    how = heads.SETS, heads.SHOTS, heads.QUERIES, args.settings["seed"]
    drawn = draw(task, reader, pool, *how, mixed=True)
    sets = [prompts for prompts in drawn if prompts[0]["shuffled_ids"]]
    rows, vector, notes = [], torch.empty(0), {"step_version": STAGES["heads"].version}
    why = None if sets else "too few train pairs with different answers to demonstrate it with"
    if sets:
        engine, readout, description = load_engine(args, sets[0][0]["token_ids"])
        why = heads.lacking(engine)
        if not engine.leader:
            return
        if not why:
            parts = Parts.of(args, engine)
            rows, vector = measured(engine, readout, sets, args.settings["task"], parts)
            notes |= how_it_ran(args, engine)
            why = None if rows else "no prompt with demonstrations is answered correctly"
        for row in rows:
            row["model"] = description["model"]
    if leads():
        if why:
            print(f"{reader.model}, {task.name}: no function vector: {why}", file=sys.stderr)
        write_tensors({"function_vector": vector}, args.vectors, notes)
    tables.write("heads", rows, args.table, notes)


def measured(engine, readout, sets: list[list[dict]], task: str, parts: Parts | None = None):
    """(rows of table `heads` but for the model, function vector [d_model]); ([], empty) if none."""
    means, scales, right, shown = heads.mean_outputs(engine, readout, sets)
    if not right:
        return [], torch.empty(0)
    chosen_prompts = heads.measured_in(right)
    progress = progress_line(sum(map(len, chosen_prompts)))
    found = [
        heads.indirect_effects(engine, readout, [rows[i] for i in numbers], means, progress, parts)
        for rows, numbers in zip(sets, chosen_prompts)
        if numbers
    ]
    effects = torch.cat([some for some, _ in found])
    shuffled = torch.cat([before for _, before in found]).mean().item()
    mean = effects.mean(0)
    error = effects.std(0) / len(effects) ** 0.5 if len(effects) > 1 else None
    chosen = heads.chosen_heads(mean)
    rows = [
        {
            "task": task,
            "layer": layer,
            "head": head,
            "prompts": len(effects),
            "effect": mean[layer, head].item(),
            "effect_error": None if error is None else error[layer, head].item(),
            "shown_prompts": sum(map(len, right)),
            "chosen": (layer, head) in chosen,
            "shown_probability": shown,
            "shuffled_probability": shuffled,
        }
        for layer in range(mean.shape[0])
        for head in range(mean.shape[1])
    ]
    return rows, heads.vector_of(engine, chosen, means, scales)
