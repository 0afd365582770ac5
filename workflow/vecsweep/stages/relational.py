"""Stage `relational`: is the relation a linear map from the argument's state to the answer's?

Linear relational embedding (Hernandez et al. 2024, "Linearity of Relation Decoding in Transformer
Language Models", arXiv 2308.09124): W and b are the mean Jacobian, and what it leaves, of the last
block's output at the last token with respect to the stream at the argument's last token after a
layer, over a few train prompts. Faithful where beta W s + b, read out, says the model's own answer;
causal where the pseudo-inverse of W finds the change of s that makes the model say another one.
"""

import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from vecsweep import Problem, tables
from vecsweep.engine.edits import CleanRun, Edit, clean_runs, resume_all
from vecsweep.engine.jacobian import jacobians
from vecsweep.engine.parts import Parts
from vecsweep.engine.plans import decoded
from vecsweep.engine.readout import target_tokens
from vecsweep.engine.running import how_it_ran, load_engine
from vecsweep.files import read_table
from vecsweep.layout import STAGES
from vecsweep.tasks.rows import answered, argument_ends, capped, kept_rows

SPLITS = ("train", "dev", "test")
BETAS = (1.0, 0.5, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)  # theirs are 0 to 5
RANKS = (4, 8, 16, 32, 64, 128, 256)  # theirs are 8 to 320
SINGULAR = 1e-5  # of the largest singular value: below, a direction is rounding
WARNED = 120  # seconds of Jacobians that are announced
TOGETHER = 8  # edits that may share a pass

Maps = dict[tuple[str, int], tuple[torch.Tensor | None, torch.Tensor]]


class Setting(NamedTuple):
    """What is chosen on dev: a method's layer, and beta (faithfulness) or rank (causality)."""

    method: str
    layer: int
    beta: float | None = None
    rank: int | None = None


@dataclass
class States:
    """Prompts (`rows`) with their states: `subjects` layer -> [prompts, d_model], `objects`.

    `ends` are where their arguments end, in tokens from the end; `batches` counts their clean runs.
    """

    rows: list[dict]
    ends: list[int]
    batches: int
    subjects: dict[int, torch.Tensor]
    objects: torch.Tensor


def run(args):
    """Write table `relational`: a row for each prompt, measure and setting that was tried."""
    rows = answered(kept_rows(args.prompts, ("abstractive",)), read_table(args.stages).to_pylist())
    ends = dict(zip((row["prompt_id"] for row in rows), argument_ends(args.tokenizer, rows)))
    splits = {name: [row for row in rows if row["split"] == name] for name in SPLITS}
    splits["train"] = capped(splits["train"], args.settings["train"], args.settings["seed"])
    outcomes, notes = [], {"step_version": STAGES["relational"].version}
    if all(splits.values()):
        engine, readout, description = load_engine(args, rows[0]["token_ids"])
        layers = spread(args.settings["layers"], len(engine.blocks) - 1)
        if not layers:
            raise Problem(
                f"model '{description['model']}' has one layer, and none below for a Jacobian to start "
                "from; take another model"
            )
        seed, parts = args.settings["seed"], Parts.of(args, engine)
        outcomes = relate(engine, readout, splits, ends, layers, seed, parts)
        for outcome in outcomes:
            outcome |= {"model": description["model"], "task": rows[0]["task"]}
        notes |= how_it_ran(args, engine)
    tables.write("relational", outcomes, args.output, notes)


def spread(count: int | None, layers: int) -> list[int]:
    """At most `count` of layers 0..layers-1, evenly spread; None: all."""
    count = min(count or layers, layers)
    return sorted({round(i * (layers - 1) / max(1, count - 1)) for i in range(count)})


def relate(
    engine, readout, splits: dict, ends: dict, layers: list[int], seed: int, parts: Parts
) -> list[dict]:
    """Outcomes of all methods: every setting on dev, the best of each method and measure on test.

    `splits` has the rows of train, dev and test, `ends` where their arguments end (prompt_id ->
    tokens from the end). A prompt's answer is the one that the model gives itself. Jacobians and
    ranks that `parts` hold already are not made again.
    """
    states = {name: states_of(engine, rows, ends, layers) for name, rows in splits.items()}
    own = {
        name: readout.best(found.objects, target_tokens(found.rows)[1])
        for name, found in states.items()
    }
    maps = fitted(engine, states["train"], layers, parts)
    inverted = {key: torch.linalg.svd(W) for key, (W, _) in maps.items() if W is not None}
    tried = {
        "faithfulness": [
            Setting(method, layer, beta)
            for method, layer in maps
            for beta in (BETAS if method != "identity" else BETAS[:1])  # whose length says nothing
        ],
        "causality": [
            Setting(method, layer, rank=rank)
            for layer in layers
            for method in CAUSAL
            for rank in ranks_of(inverted.get((method, layer)))
        ],
    }
    outcomes: list[dict] = []
    everyone = torch.cat([*own.values()])
    for split in ("dev", "test"):
        found, answers = states[split], own[split]
        partner = partners(found.rows, answers.tolist(), seed)
        for measure in tried:
            if split == "test":
                tried[measure] = best(tried[measure], outcomes, measure)
            if measure == "faithfulness":
                pieces = read(found, maps, tried[measure], answers, parts)
            else:
                pieces = edited(engine, found, inverted, tried[measure], answers, partner, parts)
            for (setting, numbers), ranks, _, _ in decoded(readout, pieces, parts=parts):
                for number, (_, rank) in zip(numbers, ranks):
                    other = partner[number] if measure == "causality" else None
                    asked = answers[number if other is None else other]
                    others = (everyone == asked).sum() - (asked == answers[number]).int()
                    outcomes.append(
                        {"split": split, "measure": measure, **setting._asdict()}
                        | {
                            "prompt_id": found.rows[number]["prompt_id"],
                            "other_id": None if other is None else found.rows[other]["prompt_id"],
                            "asked_rank": rank,
                            "success": rank == 0,
                            "chance": others.item() / max(1, len(everyone) - 1),
                        }
                    )
    return outcomes


def states_of(engine, rows: list[dict], ends: dict, layers: list[int]) -> States:
    """Clean runs of prompts, and their states at the argument's last token and at the end."""
    places = [ends[row["prompt_id"]] for row in rows]
    order: list[int] = []
    subjects: dict[int, list] = {layer: [] for layer in layers}
    objects = []
    for numbers, clean in runs_of(engine, rows, places):
        order += numbers
        for layer in layers:
            subjects[layer].append(clean.outputs["block", layer].float())
        objects.append(clean.last.float())
    back = torch.tensor(order).argsort()
    whole = {layer: torch.cat(parts)[back] for layer, parts in subjects.items()}
    return States(rows, places, len(objects), whole, torch.cat(objects)[back])


def runs_of(engine, rows: list[dict], ends: list[int]) -> Iterator[tuple[list[int], CleanRun]]:
    """(places in `rows`, clean run) of prompts whose arguments end at the same token.

    One after the other: all of a large relation's at once would fill the memory.
    """
    for place in sorted(set(ends)):
        mine = [i for i, found in enumerate(ends) if found == place]
        for clean in clean_runs(engine, [rows[i]["token_ids"] for i in mine], TOGETHER, place):
            yield [mine[row] for row in clean.rows], clean


def fitted(engine, train: States, layers: list[int], parts: Parts) -> Maps:
    """(method, layer) -> (W, b) of o = W s + b, from train prompts; a W of None is the identity.

    `lre`: the mean Jacobian, and the mean of o - J s (their equation 4). `regression`: the least
    squares of least norm. `translation`: the mean of o - s. `identity`: nothing is learnt.
    """
    count, size = train.objects.shape
    weights = torch.zeros(len(layers), size, size, device=train.objects.device)
    products = torch.zeros(len(layers), size, device=train.objects.device)
    for number, (_, clean) in enumerate(runs_of(engine, train.rows, train.ends)):
        progress = announced(train.batches if not number else 0, count)
        found = jacobians(engine, clean, layers, progress, parts)
        weights += found[0] / count
        products += found[1] / count
    end, maps = train.objects.mean(0), Maps()
    for number, layer in enumerate(layers):
        states = train.subjects[layer]
        middle = states.mean(0)
        maps["lre", layer] = weights[number], end - products[number]
        linear = (torch.linalg.pinv(states - middle, rtol=SINGULAR) @ (train.objects - end)).T
        maps["regression", layer] = linear, end - linear @ middle
        maps["translation", layer] = None, end - middle
        maps["identity", layer] = None, torch.zeros_like(end)
    return maps


def announced(runs: int, prompts: int):
    """A callback that says once how long all Jacobians take, if that is long; 0 runs: it is silent."""
    start, said = time.monotonic(), not runs

    def progress(done, of):
        nonlocal said
        seconds = (time.monotonic() - start) * runs * of / done
        if not said and seconds > WARNED:
            minutes = f"about {seconds / 60:.0f} minutes"
            print(f"the Jacobians of {prompts} prompts: {minutes}", file=sys.stderr, flush=True)
        said = True

    return progress


def partners(rows: list[dict], own: list[int], seed: int) -> list[int | None]:
    """For each prompt another one with another answer, drawn by the seed; None if there is none."""
    found: list[int | None] = []
    for row, answer in zip(rows, own):
        others = [i for i, token in enumerate(own) if token != answer]
        draw = random.Random(f"{seed} relational {row['prompt_id']}")
        found.append(draw.choice(others) if others else None)
    return found


def ranks_of(inverted) -> Sequence[int | None]:
    """The ranks to try of a map's singular values; those without a map have none."""
    if inverted is None:
        return [None]
    values = inverted.S
    known = int((values > SINGULAR * values[0]).sum())
    return sorted({min(rank, known) for rank in RANKS if known})


def best(tried: list[Setting], outcomes: list[dict], measure: str) -> list[Setting]:
    """Each method's setting with most successes on dev.

    Of equals that with the largest mean reciprocal rank of what is asked for: a method that never
    succeeds is not left with the first layer. Then the first. What dev could not try (all its prompts
    have one answer, and nothing to be changed to) is not chosen.
    """
    hits: dict[Setting, tuple[int, float]] = {}
    for row in outcomes:
        if (row["split"], row["measure"]) == ("dev", measure):
            setting = Setting(*(row[key] for key in Setting._fields))
            successes, ranks = hits.get(setting, (0, 0.0))
            hits[setting] = successes + row["success"], ranks + 1 / (1 + row["asked_rank"])
    tried = [setting for setting in tried if setting in hits]
    methods = dict.fromkeys(setting.method for setting in tried)
    return [
        max((s for s in tried if s.method == method), key=hits.__getitem__) for method in methods
    ]


def read(found: States, maps: Maps, settings: list[Setting], answers, parts: Parts) -> Iterator:
    """Pieces to decode: beta W s + b of every prompt, whose own answer is asked for."""
    section = parts.section()
    for setting in settings:
        weight, bias = maps[setting.method, setting.layer]
        states = found.subjects[setting.layer]
        states = (setting.beta or 1) * (states if weight is None else states @ weight.T) + bias
        asked = answers[:, None].cpu()
        yield states, (asked, asked), (setting, range(len(states))), f"{section}{setting}"


# What is edited: s + d with d = pinv(W) (o' - o); `substitution` puts the other's s in itself.
CAUSAL = ("lre", "regression", "identity", "substitution")


def edited(
    engine, found: States, inverted, settings: list[Setting], answers, partner, parts: Parts
) -> Iterator:
    """Pieces to decode: ends of runs with s edited, of prompts that have a partner's answer to give."""
    other = torch.tensor([i if j is None else j for i, j in enumerate(partner)])
    towards = found.objects[other] - found.objects
    section = parts.section()

    def done(names, edit):
        return parts.has(names[edit])

    for places, clean in runs_of(engine, found.rows, found.ends):
        edits = []
        for setting in settings:
            states = found.subjects[setting.layer]
            if setting.method == "substitution":
                change = (states[other] - states)[places]
            elif setting.rank is None:
                change = towards[places]
            else:
                u, s, v = inverted[setting.method, setting.layer]
                kept = slice(setting.rank)
                change = (towards[places] @ u[:, kept] / s[kept]) @ v[kept]
            vectors = {setting.layer: change[None]}
            edits.append(Edit(vectors, "add", clean.last_only, "block"))
        able = [i for i, place in enumerate(places) if partner[place] is not None]
        asked = answers[other][places][able][:, None].cpu()
        numbers = [places[i] for i in able]
        names = [f"{section}{numbers} {setting}" for setting in settings]
        resumed = resume_all(engine, clean, edits, partial(done, names))
        for name, setting, after in zip(names, settings, resumed):
            if able:
                ends = None if after is None else after[0][able]
                yield ends, (asked, asked), (setting, numbers), name
