"""Stage `patching`: which layer's state or update, at which token, carries the answer.

Activation patching (Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262, with
another prompt of the same relation in place of noise): what one part of one layer gave in the
source's run is put into the target's at the same token, and all after it runs again. Measured is
how much of the source's answer comes along.
"""

import itertools
import random
from functools import partial

import torch

from vecsweep import tables
from vecsweep.engine.edits import PARTS, Edit, clean_runs, given_by, resume_all
from vecsweep.engine.parts import Parts
from vecsweep.engine.readout import target_tokens
from vecsweep.engine.running import how_it_ran, load_engine, progress_line
from vecsweep.files import read_table
from vecsweep.layout import STAGES
from vecsweep.tasks.rows import answered, argument_ends, kept_rows

TOGETHER = 4  # edits that may share a pass: more would be spread over smaller batches


def run(args):
    """Write table `patching`: a row for each target and source, layer, part and token."""
    rows = answered(kept_rows(args.prompts, ("abstractive",)), read_table(args.stages).to_pylist())
    ends = argument_ends(args.tokenizer, rows)
    pairs = paired(rows, ends, args.settings["prompts"], args.settings["seed"])
    outcomes, notes = [], {"step_version": STAGES["patching"].version}
    if pairs:
        engine, readout, description = load_engine(args, rows[0]["token_ids"])
        outcomes = patch(engine, readout, rows, ends, pairs, Parts.of(args, engine))
        if not engine.leader:
            return
        for outcome in outcomes:
            outcome["model"] = description["model"]
        notes |= how_it_ran(args, engine)
    tables.write("patching", outcomes, args.output, notes)


def paired(rows: list[dict], ends: list[int], count: int, seed: int) -> list[tuple[int, int]]:
    """Disjoint pairs of rows, of at most `count` rows in all, drawn by the seed.

    Two of a pair are as long, their arguments end at the same token, and they share no answer's
    first token.
    """
    order = random.Random(f"{seed} patching").sample(range(len(rows)), len(rows))
    waiting: dict[tuple, list[int]] = {}
    pairs = []
    for i in order:
        alike = waiting.setdefault((len(rows[i]["token_ids"]), ends[i]), [])
        tokens = set(rows[i]["answer_tokens"])
        other = next((j for j in alike if tokens.isdisjoint(rows[j]["answer_tokens"])), None)
        if other is None:
            alike.append(i)
            continue
        alike.remove(other)
        pairs.append((other, i))
    return pairs[: count // 2]


@torch.inference_mode()
def patch(
    engine, readout, rows: list[dict], ends: list[int], pairs: list, parts: Parts | None = None
) -> list[dict]:
    """An outcome for each prompt of a pair as target, its partner as source, layer, part and token.

    `difference` is logit(source's answer) - logit(target's answer) at the end, `restored` where it
    lies between the target's own run (0) and the source's (1). A prompt's answer is the
    best of its own at the end of its own run: the top token, where it is answered correctly. What
    `parts` hold already is not run again. Empty in processes that do not decode.
    """
    parts = parts or Parts()
    source = dict(pair for a, b in pairs for pair in ((a, b), (b, a)))
    outcomes: list[dict] = []
    tokens = {"last": dict.fromkeys(source, 1), "argument": {i: ends[i] for i in source}}
    progress = progress_line(2 * len(source), engine.leader)
    for token, places in tokens.items():
        for place in sorted(set(places.values())):
            mine = [i for i in source if places[i] == place]
            runs = list(clean_runs(engine, [rows[i]["token_ids"] for i in mine], TOGETHER, place))
            partner = torch.tensor([mine.index(source[i]) for i in mine])
            answers = target_tokens([rows[i] for i in mine])[1]
            found = restored(engine, readout, runs, answers, partner, place, progress, parts)
            for (number, layer, part), values in found:
                outcomes.append(
                    {
                        "task": rows[mine[number]]["task"],
                        "prompt_id": rows[mine[number]]["prompt_id"],
                        "other_id": rows[source[mine[number]]]["prompt_id"],
                        "layer": layer,
                        "sublayer": part,
                        "position": token,
                    }
                    | values
                )
    return outcomes


def restored(engine, readout, runs: list, answers, partner, place: int, progress, parts: Parts):
    """Yield ((prompt, layer, part), its numbers) of clean runs, patched at the n-th token from the end.

    `answers` [prompts, k] are the tokens of each prompt's answers, padded with -1; `partner`
    [prompts] names its source among the runs' prompts.
    """
    order = torch.tensor([row for clean in runs for row in clean.rows]).argsort()
    if readout is not None:
        last = torch.cat([clean.last for clean in runs])[order]
        own = readout.best(last, answers)
        asked = torch.stack([own[partner], own], 1)
        before = minus(readout, last, asked)
        ends = -before[partner]  # the same two logits in the source's run
    section = parts.section()

    def done(names, edit):
        return parts.has(names[edit])

    def patched(after, numbers):
        return (minus(readout, after[0], asked[numbers]).cpu(),)

    for clean in runs:
        mine = torch.tensor(clean.rows)
        edits = {
            (layer, part): Edit(
                {layer: given_by(runs, sublayer, layer)[partner[mine]][None]},
                "replace",
                place,
                sublayer,
            )
            for layer, (part, sublayer) in itertools.product(
                range(len(engine.blocks)), PARTS.items()
            )
        }
        names = [f"{section}{clean.rows} {layer} {part}" for layer, part in edits]
        resumed = resume_all(engine, clean, list(edits.values()), partial(done, names))
        for name, key, after in zip(names, edits, resumed):
            if readout is None:
                continue
            (now,) = parts.once(name, partial(patched, after, mine), "numbers")
            now = now.to(before)
            shares = (now - before[mine]) / (ends[mine] - before[mine])
            columns = zip(
                clean.rows,
                *(values.tolist() for values in (now, before[mine], ends[mine], shares)),
            )
            columns_of = ("difference", "target_difference", "source_difference", "restored")
            for number, *values in columns:
                yield (number, *key), dict(zip(columns_of, values))
        progress(len(clean.rows), len(clean.rows) * place * len(edits))


def minus(readout, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The first token's logit minus the second's, [n], of states [n, d_model], tokens [n, 2]."""
    logits = readout.logits_at(readout.normed(states), tokens)
    return logits[:, 0] - logits[:, 1]
