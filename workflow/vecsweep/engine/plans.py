"""Plans of edits, run on prompts: what the answer's rank was before, and is after."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from vecsweep.engine.edits import Edit, clean_runs, resume
from vecsweep.engine.readout import decode, target_tokens
from vecsweep.engine.running import progress_line

DECODED_TOGETHER = 2048  # states, at least


@dataclass
class Plan:
    """One edit of layers start..end with several vectors [n, d_model], each with its labels."""

    start: int
    end: int
    mode: Literal["replace", "add"]
    position: Literal["all", "last"]
    vectors: torch.Tensor
    labels: list[dict] = field(default_factory=list)


def end_layer(settings: dict, layers: int) -> int:
    """The last layer that is edited: `end_depth` of the depth, 1 being the last layer."""
    return max(0, round(settings["end_depth"] * layers) - 1)


def named(control: str, source_layer: int, donor=None, repeat=None) -> dict:
    """What a vector is: its control, where it was cut, of which prompt or which repetition."""
    names = {"control": control, "source_layer": source_layer}
    return names | {"donor": donor, "repeat": repeat}


def plan(
    settings: dict,
    mode: Literal["replace", "add"],
    start: int,
    end: int,
    vectors: torch.Tensor,
    names: list[dict],
) -> Plan:
    """A plan with each vector [n, d_model] at each scale of the settings; `names` one for each."""
    scales = settings["scales"]
    labels = [name | {"scale": scale} for scale in scales for name in names]
    scaled = torch.cat([scale * vectors for scale in scales])
    return Plan(start, end, mode, settings["position"], scaled, labels)


def run_plans(engine, readout, rows: list[dict], plans: list[Plan], report=False) -> list[dict]:
    """An outcome for each plan's vector and prompt: ranks and top token, before and after.

    The prompts are run clean once; every plan resumes from its start layer. Empty in processes that
    do not decode.
    """
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
                vectors = dict.fromkeys(range(plan.start, plan.end + 1), plan.vectors)
                after = resume(engine, clean, Edit(vectors, plan.mode, plan.position))
                count = len(plan.labels)
                yield (
                    after.flatten(0, 1),
                    [tokens.repeat(count, 1) for tokens in chosen],
                    (clean.rows * count, plan),
                )
            progress(len(clean.rows), len(clean.rows) * sum(len(plan.labels) for plan in plans))

    outcomes: list[dict] = []
    before: dict[int, tuple] = {}
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
    (other processes wait for them) and nothing is yielded.
    """

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


def label(
    outcomes: list[dict], model: str, task: str, split: str, domain="in", chosen: bool | None = None
) -> None:
    """Write the cell's names into outcomes: `ovector_task` is the task whose vector was used."""
    for outcome in outcomes:
        outcome |= {"model": model, "task": outcome.pop("prompt_task"), "ovector_task": task}
        outcome |= {"split": split, "domain": domain, "chosen": chosen}
