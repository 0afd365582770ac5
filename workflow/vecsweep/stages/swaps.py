"""Stage `swaps`: is what a layer writes a function, or the fact itself?

Prompts of one task that are answered correctly, each with another answer, exchange what one part of
one layer gave at the last token. An update that is a function of the argument that is there already
leaves each prompt its own answer; one that is the fact, recalled, brings the other prompt's along.
An idle one leaves it too: so every update is also dropped, by itself.
Interchange interventions (Geiger et al., arXiv 2106.02997) of the updates of arXiv 2305.16130.
"""

import itertools
import random
from functools import partial

import torch

from vecsweep import tables
from vecsweep.engine.edits import PARTS, Edit, clean_runs, given_by, resume_all
from vecsweep.engine.parts import Parts
from vecsweep.engine.plans import decoded
from vecsweep.engine.readout import target_tokens
from vecsweep.engine.running import how_it_ran, load_engine, progress_line
from vecsweep.files import read_table
from vecsweep.layout import STAGES
from vecsweep.tasks.rows import answered, kept_rows

BY_FFN = ("ffn", "both")


def run(args):
    """Write table `swaps`: a row for each ordered pair of prompts, layer and part.

    And one for each prompt without that part: `other_id` is null, it got nothing instead.
    """
    prompts = kept_rows(args.prompts, ("abstractive",))
    stages = read_table(args.stages).to_pylist()
    rows = partners(prompts, stages, args.settings["prompts"], args.settings["seed"])
    outcomes, notes = [], {"step_version": STAGES["swaps"].version}
    if len(rows) > 1:
        engine, readout, description = load_engine(args, rows[0]["token_ids"])
        outcomes = exchange(engine, readout, rows, Parts.of(args, engine))
        if not engine.leader:
            return
        # Its own output changes nothing: the diagonal says only that the answer is right.
        outcomes = [row for row in outcomes if row["prompt_id"] != row["other_id"]]
        for outcome in outcomes:
            outcome["model"] = description["model"]
        notes |= how_it_ran(args, engine)
    tables.write("swaps", outcomes, args.output, notes)


def partners(prompts: list[dict], stages: list[dict], count: int, seed: int) -> list[dict]:
    """At most `count` prompts to exchange between, with `function_layer` and `function_site`.

    They are in-domain, answered correctly, of one template (the one with most such prompts) and no
    two share an answer's token. Seeded, but those go first whose answer was put on top by an FFN of
    the layer where that is commonest, then those of other layers' FFNs. In the order of `prompts`;
    none where only one could be had.
    """
    right = answered(prompts, stages)
    order = random.Random(f"{seed} swaps").sample(range(len(right)), len(right))
    by_ffn = [row["function_layer"] for row in right if row["function_site"] in BY_FFN]
    common = max(sorted(set(by_ffn)), key=by_ffn.count, default=None)

    def rank(i):
        ffn = right[i]["function_site"] in BY_FFN
        return not (ffn and right[i]["function_layer"] == common), not ffn

    order.sort(key=rank)
    chosen: list[int] = []
    taken: set[int] = set()
    for i in order:
        tokens = set(right[i]["answer_tokens"])
        if len(chosen) < count and not tokens & taken:
            chosen.append(i)
            taken |= tokens
    return [right[i] for i in sorted(chosen)] if len(chosen) > 1 else []


def exchange(engine, readout, rows: list[dict], parts: Parts | None = None) -> list[dict]:
    """An outcome for each ordered pair of prompts, also each with itself, and each layer and part.

    And for each prompt without the part, but for the state.

    Every prompt is run clean once; of an exchange only the last token runs again, from its layer up.
    What `parts` hold already is not run again. Empty in processes that do not decode.
    """
    parts = parts or Parts()
    prompts = [row["token_ids"] for row in rows]
    runs = list(clean_runs(engine, prompts, len(rows) + 1, last_only=True))  # each, and nothing
    answers = target_tokens(rows)[1]
    layers = range(len(engine.blocks))
    progress = progress_line(len(rows), engine.leader)

    def done(names, edit):
        return parts.has(names[edit])

    def pieces():
        for clean in runs:
            nobody = torch.full_like(answers[:1], -1)
            own = answers[clean.rows].repeat(len(rows) + 1, 1)
            others = torch.cat([answers, nobody]).repeat_interleave(len(clean.rows), 0)
            edits = {}
            for layer, (part, sublayer) in itertools.product(layers, PARTS.items()):
                given = given_by(runs, sublayer, layer)
                if part != "state":  # which nothing is left without
                    given = torch.cat([given, torch.zeros_like(given[:1])])
                edits[layer, part] = Edit({layer: given}, "replace", "last", sublayer)
            names = [f"{clean.rows} {layer} {part}" for layer, part in edits]
            runs_of = resume_all(
                *(engine, clean, list(edits.values())),
                partial(done, names),
            )
            for name, (key, edit), after in zip(names, edits.items(), runs_of):
                state = None if after is None else after.flatten(0, 1)
                count = edit.variants * len(clean.rows)
                yield state, (own[:count], others[:count]), (clean.rows, *key), name
            progress(len(clean.rows), len(own) * len(layers) * len(PARTS))

    outcomes = []
    for (numbers, layer, part), ranks, _, _ in decoded(readout, pieces(), parts=parts):
        for i, (own, others) in enumerate(ranks):
            other, number = divmod(i, len(numbers))
            row, given = rows[numbers[number]], other < len(rows)
            outcomes.append(
                {key: row[key] for key in ("task", "prompt_id", "function_layer", "function_site")}
                | {
                    "other_id": rows[other]["prompt_id"] if given else None,
                    "layer": layer,
                    "sublayer": part,
                    "own_rank": own,
                    "others_rank": others if given else None,
                    "outcome": outcome_of(own, others if given else None),
                }
            )
    return outcomes


def outcome_of(own: int, others: int | None) -> str:
    """Whose answer is on top, from both ranks; nobody else's where nothing was given."""
    return "own" if own == 0 else "others" if others == 0 else "neither"
