"""Stage `tuned`: the tuned lens beside the plain one (Belrose et al. 2023), after each block.

Translators are fitted on the train prompts of all listed tasks together, a fifth of whose pairs is
held out to choose by. They decode the dev and test prompts that share no argument and no answer's
first token with any of those. No forward: stored states, the readout and the plain lens' rows do.
"""

import random

import pyarrow as pa
import pyarrow.compute as pc
import torch

from vecsweep import Problem, tables
from vecsweep.engine.decoding import decode
from vecsweep.engine.readout import Readout, target_tokens
from vecsweep.engine.translators import LEAST_GAIN, Translator, divergence, ends_of, fit, tokens_for
from vecsweep.files import once, read_json
from vecsweep.layout import STAGES
from vecsweep.sweep import FEWEST_TUNED
from vecsweep.tasks.rows import CAPTURED, kept_rows, states_of, unseen

SITE = "resid_post"


def run(args):
    """Write table `tuned`: held-out, dev and test prompts after each layer of a block."""
    description, seed = read_json(args.model), args.settings["seed"]
    readout = once(args, Readout.load, args.readout)
    if readout.cap is not None:
        raise Problem(
            f"model '{description['model']}': a lens is not tuned to soft-capped logits; name no tasks "
            "under tuned, or leave the model out"
        )
    own = [kept_rows(path, CAPTURED) for path in args.prompts]
    files = [states_of(*pair) for pair in zip(args.states, own)]
    rows = [row for some in own for row in some]
    seen, held, shown = deal(rows, seed)
    train = torch.tensor(seen + held)
    chooses = torch.arange(len(train)) >= len(seen)

    def states_at(layer):
        return torch.cat([file[f"{SITE}.{layer:02d}"].float() for file in files])

    last = states_at(description["layers"] - 1)
    ends, others = ends_of(readout, last[train]), ends_of(readout, last[shown])
    tokens = tokens_for(readout, ends.top, seed)
    columns = ["layer", "site", "top_token", "top_probability"]
    lens = [tables.read("lens", path, columns) for path in args.lens]
    blocks = []
    for layer in range(args.first, args.last + 1):
        states = states_at(layer)
        plain = torch.tensor(top_of(lens, layer))
        labels = {"model": description["model"], "layer": layer}
        translator = fit(readout, tokens, states[train], ends, chooses)
        mine = [rows[i] for i in held], states[held], ends.rows(chooses), plain[held]
        found = table_of(readout, translator, *mine, labels | {"part": "held-out"})
        if pc.mean(pc.subtract(found["plain_kl"], found["kl"])).as_py() < LEAST_GAIN:
            translator = Translator()
            found = table_of(readout, translator, *mine, labels | {"part": "held-out"})
        blocks.append(found)
        if shown:
            asked = [rows[i] for i in shown], states[shown], others, plain[shown]
            blocks.append(table_of(readout, translator, *asked, labels))
    tables.write(
        "tuned", pa.concat_tables(blocks), args.output, {"step_version": STAGES["tuned"].version}
    )


def deal(rows: list[dict], seed: int) -> tuple[list[int], list[int], list[int]]:
    """Places of the rows that translators are fitted on, that choose, and that are reported.

    Twins stand together: a pair's extractive prompt is on the side of its abstractive one.
    """
    train = [row for row in rows if row["split"] == "train"]
    pairs = sorted({(row["task"], row["prompt_id"]) for row in train})
    if len(pairs) < FEWEST_TUNED:
        raise Problem(
            f"only {len(pairs)} train pairs in the tasks of tuned > tasks, {FEWEST_TUNED} are needed; "
            "name more tasks there, or raise max_prompts"
        )
    held = set(random.Random(f"{seed} held out").sample(pairs, len(pairs) // 5))
    asked = [
        row
        for row in rows
        if row["split"] != "train"
        and row["prompt_set"] == "abstractive"
        and not row["out_of_domain"]
    ]
    shown = {id(row) for row in unseen(asked, train, {row["prompt_id"] for row in train})}
    places: tuple[list[int], list[int], list[int]] = [], [], []
    for i, row in enumerate(rows):
        if row["split"] == "train":
            places[(row["task"], row["prompt_id"]) in held].append(i)
        elif id(row) in shown:
            places[2].append(i)
    return places


def top_of(lens: list[pa.Table], layer: int) -> list[tuple[int, float]]:
    """(top token, its probability) of each prompt of all tasks, by the plain lens after a layer."""
    found = []
    for table in lens:
        here = pc.and_(pc.equal(table["layer"], layer), pc.equal(table["site"], SITE))
        some = table.filter(here)
        found += [
            (tokens[0], shares[0])
            for tokens, shares in zip(
                some["top_token"].to_pylist(), some["top_probability"].to_pylist()
            )
        ]
    return found


@torch.inference_mode()
def read(readout: Readout, translator, rows: list[dict], states, ends, plain) -> dict:
    """Columns of translated states [n, d_model]: ranks of both targets, KL, and the plain lens' KL.

    `plain` [n, 2]: the plain lens' top token and its probability, of which log Z follows.
    """
    translated = translator(states)
    decoded = decode(readout, translated, target_tokens(rows), 1)
    top = torch.stack([decoded.top_token[:, 0].double(), decoded.top_probability[:, 0].double()], 1)
    columns = {}
    for name, x, best in (("kl", translated, top), ("plain_kl", states, plain.double())):
        normed = readout.normed(x)
        logits = readout.logits_at(normed, best[:, :1].long())[:, 0]
        columns[name] = divergence(ends, normed, logits - best[:, 1].log().float())
    if translator.basis is None:  # one lens: the two differ by how their prompts were batched
        columns["kl"] = columns["plain_kl"]
    return columns | {"argument_rank": decoded.rank[:, 0], "answer_rank": decoded.rank[:, 1]}


def table_of(readout, translator, rows, states, ends, plain, labels: dict) -> pa.Table:
    """Rows of table `tuned`; without a part in `labels` a prompt's is its split."""
    numbers = read(readout, translator, rows, states, ends, plain)
    labels = labels | {"ridge": translator.ridge, "steps": translator.steps}
    names = {"task": "task", "prompt_set": "prompt_set", "prompt_id": "prompt_id", "part": "split"}
    columns = {name: [row[key] for row in rows] for name, key in names.items()}
    columns |= {name: [value] * len(rows) for name, value in labels.items()}
    columns |= {name: values.tolist() for name, values in numbers.items()}
    schema = tables.schema("tuned")
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)
