"""Stage `interventions`: o-vectors put into novel contexts, over all start layers (paper section 2).

This is the search on the dev half of the arguments; stage `selection` reports on the other half.
"""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from vecsweep import STEP_VERSIONS
from vecsweep.files import Tensors, read_json, read_table, write_table
from vecsweep.stages.prompts import kept_rows
from vecsweep.stages.states import engine_arguments, load_engine

NOVEL = ("novel",)
DECODED_TOGETHER = 2048  # states, at least


def model_arguments(parser):
    """Arguments of every stage that runs a model on prompts."""
    parser.add_argument("--model", type=Path, required=True, help="model.json")
    parser.add_argument("--readout", type=Path, required=True, help="readout.safetensors")
    parser.add_argument("--prompts", type=Path, required=True, help="Parquet of stage prompts")
    engine_arguments(parser)
    parser.add_argument("--settings", type=json.loads, required=True, help="JSON: see config.yaml")
    parser.add_argument("--output", type=Path, required=True, help="Parquet to write")


def arguments(parser):
    model_arguments(parser)
    parser.add_argument("--vectors", type=Path, required=True, help="safetensors of ovectors")
    parser.add_argument("--first", type=int, required=True, help="first start layer")
    parser.add_argument("--last", type=int, required=True, help="last start layer, inclusive")


def run(args):
    """Write a row for each dev prompt, vector, start layer, mode and scale."""
    vectors, donors = read_vectors(args.vectors)
    rows = dev_prompts(kept_rows(args.prompts, NOVEL), donors, args.settings)
    outcomes = []
    layers = read_json(args.model)["layers"]
    # Nothing to do may also be a block of start layers above the last edited layer.
    if len(vectors) and rows and args.first <= end_layer(args.settings, layers):
        engine, readout, description = load_engine(args, rows[0]["token_ids"])
        plans = search_plans(vectors, donors, args.settings, args.first, args.last, layers)
        outcomes = run_plans(engine, readout, rows, plans, report=True)
        label(outcomes, description["model"], rows[0]["task"], "dev")
        if not engine.leader:
            return
    write_outcomes(outcomes, args, STEP_VERSIONS["interventions"])


def read_vectors(path):
    """(o-vectors [n, d_model], [(donor's prompt_id, source layer), ...]) of stage ovectors."""
    file = Tensors(path)
    return file["vectors"], [tuple(pair) for pair in json.loads(file.metadata["donors"])]


def dev_prompts(rows: list[dict], donors: list, settings: dict) -> list[dict]:
    """In-domain novel prompts of the dev half, without the donors' arguments, capped."""
    return capped(in_domain(rows, donors, "dev"), settings["dev_prompts"], settings["seed"])


def in_domain(rows: list[dict], donors: list, split: str) -> list[dict]:
    """In-domain prompts of one half; a donor's own argument is in neither."""
    ids = {donor for donor, _ in donors}
    taken = {row["argument"] for row in rows if row["prompt_id"] in ids}
    return [
        row
        for row in rows
        if row["split"] == split and not row["out_of_domain"] and row["argument"] not in taken
    ]


def capped(rows: list, count: int | None, seed: int) -> list:
    """A seeded sample of at most `count` rows in their order; all of them without a count."""
    if count is None or len(rows) <= count:
        return rows
    chosen = set(random.Random(f"{seed} interventions").sample(range(len(rows)), count))
    return [row for i, row in enumerate(rows) if i in chosen]


@dataclass
class Plan:
    """One edit of layers start..end with several vectors [n, d_model], each with its labels."""

    start: int
    end: int
    mode: str
    position: str
    vectors: object
    labels: list[dict] = field(default_factory=list)


def search_plans(vectors, donors, settings, first, last, layers) -> list[Plan]:
    """The plans of all start layers first..last: every vector, mode and scale."""
    end = end_layer(settings, layers)
    return [
        plan(settings, mode, start, end, vectors, donors)
        for start in range(first, min(last, end) + 1)
        for mode in settings["modes"]
    ]


def end_layer(settings: dict, layers: int) -> int:
    """The last layer that is edited: `end_depth` of the depth, 1 being the last layer."""
    return max(0, round(settings["end_depth"] * layers) - 1)


def plan(settings, mode, start, end, vectors, donors, control="o-vector") -> Plan:
    """A plan with each vector at each scale."""
    import torch

    scales = settings["scales"]
    labels = [
        {"donor": donor, "source_layer": layer, "scale": scale, "control": control}
        for scale in scales
        for donor, layer in donors
    ]
    scaled = torch.cat([scale * vectors for scale in scales])
    return Plan(start, end, mode, settings["position"], scaled, labels)


def run_plans(engine, readout, rows: list[dict], plans: list[Plan], report=False) -> list[dict]:
    """An outcome for each plan's vector and prompt: ranks and top token, before and after.

    The prompts are run clean once; every plan resumes from its start layer. Empty on ranks that
    do not decode.
    """
    from vecsweep.stages.lens import target_tokens
    from vecsweep.engine.edits import Edit, clean_runs, resume
    from vecsweep.stages.states import progress_line

    if not plans:
        return []
    targets = target_tokens(rows)
    widest = max(len(plan.labels) for plan in plans)
    progress = progress_line(len(rows), engine.leader) if report else lambda prompts, tokens: None

    def pieces():
        for clean in clean_runs(engine, [row["token_ids"] for row in rows], widest):
            chosen = [tokens[clean.rows] for tokens in targets]
            yield clean.last, chosen, (clean.rows, None)
            for plan in plans:
                vectors = {layer: plan.vectors for layer in range(plan.start, plan.end + 1)}
                after = resume(engine, clean, Edit(vectors, plan.mode, plan.position))
                count = len(plan.labels)
                yield (
                    after.flatten(0, 1),
                    [tokens.repeat(count, 1) for tokens in chosen],
                    (clean.rows * count, plan),
                )
            progress(len(clean.rows), len(clean.rows) * sum(len(plan.labels) for plan in plans))

    outcomes, before = [], {}
    for (numbers, plan), ranks, tops in decoded(readout, pieces()):
        if plan is None:
            before.update(zip(numbers, zip(ranks, tops)))
            continue
        each = len(numbers) // len(plan.labels)
        for i, (number, rank, top) in enumerate(zip(numbers, ranks, tops)):
            (argument_before, answer_before), top_before = before[number]
            outcomes.append(
                plan.labels[i // each]
                | {
                    "prompt_id": rows[number]["prompt_id"],
                    "prompt_task": rows[number]["task"],
                    "start_layer": plan.start,
                    "end_layer": plan.end,
                    "mode": plan.mode,
                    "position": plan.position,
                    "argument_rank_before": argument_before,
                    "argument_rank_after": rank[0],
                    "answer_rank_before": answer_before,
                    "answer_rank_after": rank[1],
                    "top_before": top_before,
                    "top_after": top,
                }
            )
    return outcomes


def decoded(readout, pieces):
    """Decode (states [n, d_model], targets, tag) pieces; yield (tag, ranks, top tokens) of each.

    Ranks are [[argument's, answer's], ...]. Pieces are decoded many at a time: the LM head is
    read from memory once a call, however few the states. Without a readout the pieces are run
    (other ranks wait for them) and nothing is yielded.
    """
    import torch

    from vecsweep.engine.readout import decode

    def flush():
        width = max(answer.shape[-1] for _, (_, answer), _ in waiting)
        states = torch.cat([states for states, _, _ in waiting])
        argument = torch.cat([targets[0] for _, targets, _ in waiting])
        answer = torch.cat(
            [
                torch.nn.functional.pad(targets[1], (0, width - targets[1].shape[-1]), value=-1)
                for _, targets, _ in waiting
            ]
        )
        with torch.inference_mode():
            found = decode(readout, states, [t.to(states.device) for t in (argument, answer)], 1)
        start = 0
        for piece, _, tag in waiting:
            rows = slice(start, start := start + len(piece))
            yield tag, found.rank[rows].tolist(), found.top_token[rows, 0].tolist()

    waiting = []
    for piece in pieces:
        if readout is None:
            continue
        waiting.append(piece)
        if sum(len(states) for states, _, _ in waiting) >= DECODED_TOGETHER:
            yield from flush()
            waiting = []
    if waiting:
        yield from flush()


def label(outcomes: list[dict], model: str, task: str, split: str, domain: str = "in") -> None:
    """Write the cell's names into outcomes: `ovector_task` is the task whose vector was used."""
    for outcome in outcomes:
        outcome |= {"model": model, "task": outcome["prompt_task"], "ovector_task": task}
        outcome |= {"split": split, "domain": domain}


def write_outcomes(outcomes: list[dict], args, step_version: int) -> None:
    """Write table `interventions`, wide: both targets in a row; empty where nothing was found."""
    import pyarrow as pa

    names = schema(pa).names
    rows = [{name: outcome[name] for name in names} for outcome in outcomes]
    table = pa.Table.from_pylist(rows, schema=schema(pa))
    write_table(table, args.output, {"step_version": step_version, "shards": args.shards})


def schema(pa):
    """Columns of table `interventions`, wide."""
    text, number, small = pa.string(), pa.int32(), pa.int16()
    return pa.schema(
        {
            "model": text,
            "task": text,
            "ovector_task": text,
            "donor": number,
            "source_layer": small,
            "start_layer": small,
            "end_layer": small,
            "mode": text,
            "position": text,
            "scale": pa.float32(),
            "control": text,
            "domain": text,
            "split": text,
            "prompt_id": number,
            "argument_rank_before": number,
            "argument_rank_after": number,
            "answer_rank_before": number,
            "answer_rank_after": number,
            "top_before": number,
            "top_after": number,
        }
    )


def read_outcomes(paths) -> list[dict]:
    """The outcomes in some files of `write_outcomes`."""
    return [row for path in paths for row in read_table(path).to_pylist()]
