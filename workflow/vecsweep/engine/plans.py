"""Plans of edits, run on prompts: what the answer's rank was before, and is after."""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from vecsweep.engine.decoding import decode
from vecsweep.engine.edits import Edit, Sublayer, clean_runs, resume_all
from vecsweep.engine.parts import Parts
from vecsweep.engine.readout import target_tokens
from vecsweep.engine.running import progress_line

Position = Literal["all", "last"]
DECODED_TOGETHER = 2048  # states, at least


@dataclass
class Plan:
    """One edit of layers start..end with several vectors [n, d_model], each with its labels.

    A mode that ends in _state edits the residual stream after the block, not the FFN's update.
    """

    start: int
    end: int
    mode: Literal["replace", "add", "replace_state", "add_state"]
    position: Position
    vectors: torch.Tensor
    labels: list[dict] = field(default_factory=list)

    @property
    def edit(self) -> Edit:
        """The edit as the engine applies it."""
        vectors = dict.fromkeys(range(self.start, self.end + 1), self.vectors)
        sublayer: Sublayer = "block" if self.mode.endswith("_state") else "ffn"
        mode: Literal["replace", "add"] = "add" if self.mode.startswith("add") else "replace"
        return Edit(vectors, mode, self.position, sublayer)


def end_layer(settings: dict, layers: int) -> int:
    """The last layer that is edited: `end_depth` of the depth, 1 being the last layer."""
    return max(0, round(settings["end_depth"] * layers) - 1)


def run_plans(
    engine,
    readout,
    rows: list[dict],
    plans: list[Plan],
    answers: torch.Tensor,
    report=False,
    parts: Parts | None = None,
) -> list[dict]:
    """An outcome for each plan's vector and prompt: ranks and top token, before and after.

    `answers` [T] are the first tokens of all answers of the prompts' task: each outcome has the
    place of its own among them, and both lifts in probability, see `AmongAnswers`. The prompts are run
    clean once; every plan resumes from its start layer. What `parts` hold already is not run again.
    Empty in processes that do not decode.
    """
    if not plans:
        return []
    targets = target_tokens(rows)
    others = AmongAnswers(rows, answers)
    widest = max(len(plan.labels) for plan in plans)
    edits = [plan.edit for plan in plans]
    last_only = all(plan.position == "last" for plan in plans)
    progress = progress_line(len(rows), engine.leader) if report else lambda prompts, tokens: None

    parts = parts or Parts()
    section = parts.section()

    def name(numbers, plan):
        return f"{section}{numbers} {plan}"

    def done(numbers, plan):
        return parts.has(name(numbers, plan))

    def all_done(numbers):
        return all(done(numbers, plan) for plan in (None, *range(len(plans))))

    def pieces():
        prompts = [row["token_ids"] for row in rows]
        for clean in clean_runs(engine, prompts, widest, last_only, all_done):
            numbers = clean.rows
            chosen = [tokens[numbers] for tokens in targets]
            yield clean.last, chosen, (numbers, None), name(numbers, None)
            runs = resume_all(engine, clean, edits, partial(done, numbers))
            for i, (plan, after) in enumerate(zip(plans, runs)):
                count = len(plan.labels)
                yield (
                    None if after is None else after.flatten(0, 1),
                    [tokens.repeat(count, 1) for tokens in chosen],
                    (numbers * count, plan),
                    name(numbers, i),
                )
            progress(len(numbers), len(numbers) * sum(len(plan.labels) for plan in plans))

    outcomes: list[dict] = []
    before: dict[int, tuple] = {}
    for (numbers, plan), ranks, tops, among in decoded(readout, pieces(), answers, parts):
        if plan is None:
            before.update(zip(numbers, zip(ranks, tops, among)))
            continue
        each = len(numbers) // len(plan.labels)
        placed = others.compare(numbers, torch.stack([before[n][2] for n in numbers]), among)
        for i, (number, rank, top) in enumerate(zip(numbers, ranks, tops)):
            (argument_before, answer_before), top_before, _ = before[number]
            outcomes.append(
                plan.labels[i // each]
                | placed[i]
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


class AmongAnswers:
    """Each prompt's own answer among all answers of its task: does an edit know the argument?

    Own are the tokens that are right for the prompt, others the rest of `answers` [T] without the
    prompt's argument. A vector that only promotes the class lifts both alike.
    """

    def __init__(self, rows: list[dict], answers: torch.Tensor):
        self.own = torch.stack(
            [torch.isin(answers, torch.tensor(row["answer_tokens"])) for row in rows]
        )
        argument = torch.tensor([row["argument_token"] for row in rows])
        self.others = ~self.own & (answers != argument[:, None])

    def compare(self, rows: list[int], before: torch.Tensor, after: torch.Tensor) -> list[dict]:
        """Columns of outcomes from log probabilities [n, T] of all answers, for prompts `rows`.

        `place`: number of other answers that are likelier than the own, 0 is the best. `lift`:
        log2 of the probability after over that before, of the own and on average of the others.
        """
        own, others = self.own[rows], self.others[rows]
        count = others.sum(1)
        best, places = [], []
        for found in (before, after):
            best.append(found.masked_fill(~own, -torch.inf).amax(1))
            places.append(((found > best[-1][:, None]) & others).sum(1).tolist())
        rise = ((after - before) * others).sum(1) / count.clamp(min=1)
        lifts = torch.stack([best[1] - best[0], rise], 1) / math.log(2)
        columns = zip(own.sum(1).tolist(), count.tolist(), *places, *lifts.T.tolist())
        names = (
            "accepted",
            "alternatives",
            "place_before",
            "place_after",
            "own_lift",
            "others_lift",
        )
        rows_of = [dict(zip(names, values)) for values in columns]
        for row in rows_of:
            if not row["alternatives"]:
                row["others_lift"] = None
        return rows_of


def decoded(readout, pieces, among: torch.Tensor | None = None, parts: Parts | None = None):
    """Decode (states [n, d_model], targets, tag, name) pieces; yield (tag, ranks, top, among).

    Ranks are [[argument's, answer's], ...]; among [n, T] the natural log probabilities of the
    tokens `among` [T]. Pieces are decoded many at a time: the LM head is read from memory once a
    call, however few the states. `parts` hold what was done before, by name: such pieces need no
    states; those without a name are not kept. Those that follow are decoded beside the same ones as
    ever, so that they have the same numbers. Without a readout the pieces are run (other processes
    wait for them) and nothing is yielded.
    """
    parts = parts or Parts()

    def flush():
        width = max(answer.shape[-1] for _, _, (_, answer), _ in waiting)
        states = torch.cat([states for _, states, _, _ in waiting])
        argument = torch.cat([targets[0] for _, _, targets, _ in waiting])
        answer = torch.cat(
            [
                torch.nn.functional.pad(targets[1], (0, width - targets[1].shape[-1]), value=-1)
                for _, _, targets, _ in waiting
            ]
        )
        with torch.inference_mode():
            targets = [t.to(states.device) for t in (argument, answer)]
            found = decode(readout, states, targets, 1, among)
        columns = found.rank.cpu(), found.top_token[:, 0].cpu(), found.among.cpu()
        start = 0
        for name, piece, _, tag in waiting:
            rows = slice(start, start := start + len(piece))
            some = tuple(column[rows] for column in columns)
            if name:
                parts.keep(name, some)
            yield tag, some[0].tolist(), some[1].tolist(), some[2]
        waiting.clear()

    waiting: list[tuple] = []
    for states, targets, tag, *named in pieces:
        name = named[0] if named else None
        if readout is None:
            continue
        if name in parts.done:
            before = parts.found(name)
            if before is not None:
                if waiting:  # in their order
                    yield from flush()
                yield tag, before[0].tolist(), before[1].tolist(), before[2]
                continue
            states = parts.states(name).to(readout.weight.device)
        elif name:
            parts.wait(name, states)
        waiting.append((name, states, targets, tag))
        if sum(len(states) for _, states, _, _ in waiting) >= DECODED_TOGETHER:
            yield from flush()
        parts.write()
    if waiting:
        yield from flush()


def label(outcomes: list[dict], model: str, task: str, split: str, domain="in") -> None:
    """Write the cell's names into outcomes: `ovector_task` is the task whose vector was used."""
    for outcome in outcomes:
        outcome |= {"model": model, "task": outcome.pop("prompt_task"), "ovector_task": task}
        outcome |= {"split": split, "domain": domain}
