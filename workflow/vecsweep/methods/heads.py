"""Function vectors (Todd et al. 2024, arXiv 2310.15213): what the attention heads that matter write.

A head's output is its part of the input of the attention's output projection, at the last token.
Means are over prompts that show the task; a head's effect is what the answer gains when that mean
stands in its place in a prompt whose demonstrations have each other's answers (their section 2).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from vecsweep.engine.edits import CleanRun, Edit, clean_runs, resume_all
from vecsweep.engine.families import output_weight
from vecsweep.engine.forward import first, hooks
from vecsweep.engine.load import Engine
from vecsweep.engine.parts import Parts
from vecsweep.engine.plans import decoded
from vecsweep.engine.readout import target_tokens

# Sets of demonstrations, demonstrations of a set (theirs: 10), prompts that share them: 25 for the
# means; effects are measured in some of these. Theirs are 100 and 25.
SETS, SHOTS, QUERIES, MEASURED = 5, 10, 5, 10
# Theirs are 10 of GPT-J's 448 heads, and in larger models about in proportion to all heads.
SHARE = 10 / 448


def lacking(engine: Engine) -> str | None:
    """Why heads cannot be told apart in this engine; None if they can."""
    if engine.sharding != "single":
        return "its heads are spread over several processes"
    if not engine.family.attention_out:
        return "its family names no output projection of the attention"
    width = len(output_weight(engine.part(0, "attention_out")))
    if width % engine.model.config.num_attention_heads:
        return "its attention's output projection does not read the heads side by side"
    return None


@contextmanager
def _projected(engine: Engine) -> Iterator[dict[tuple[str, int], torch.Tensor]]:
    """("in" or "out", layer) -> what the output projection read and gave last, at the last token.

    [prompts, heads * size] and [prompts, d_model], in float32.
    """
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def keep(layer):
        def hook(module, args, output):
            for name, whole in (("in", args[0]), ("out", first(output))):
                rows = whole.view(engine.shape[0], -1, whole.shape[-1])
                seen[name, layer] = rows[:, -1].float().clone()

        return hook

    layers = range(len(engine.blocks))
    projections = [engine.part(layer, "attention_out") for layer in layers]
    with hooks([p.register_forward_hook(keep(i)) for i, p in enumerate(projections)]):
        yield seen


def matrices(engine: Engine, layer: int) -> torch.Tensor:
    """A layer's output projection by head [heads, size, d_model], in float32, without its bias."""
    weight = output_weight(engine.part(layer, "attention_out")).float()
    return weight.view(engine.model.config.num_attention_heads, -1, weight.shape[-1])


def mean_outputs(engine: Engine, readout, sets: list[list[dict]]):
    """Means over the prompts that are answered correctly, as the authors take them.

    (outputs [layers, heads * size], scales [layers, d_model], numbers of those prompts in each set,
    their answers' mean probability). Scales are what a norm behind the projection multiplies its
    output by, 1 without one. (None, None, [], None) if none is answered.
    """
    outputs, scales, right, said = [], [], [], []
    for rows in sets:
        found = {}
        with _projected(engine) as seen:
            for clean in clean_runs(engine, [row["token_ids"] for row in rows], 1, last_only=True):
                some = [rows[i] for i in clean.rows]
                ranks, logs = _answers(readout, clean, some)
                inside = torch.stack([seen["in", i] for i in range(len(engine.blocks))], 1)
                scale = _scales(engine, clean, seen)
                for i, number in enumerate(clean.rows):
                    if ranks[i] == 0:
                        found[number] = inside[i], scale[i], logs[i]
        right.append(sorted(found))
        outputs += [found[number][0] for number in right[-1]]
        scales += [found[number][1] for number in right[-1]]
        said += [found[number][2] for number in right[-1]]
    if not said:
        return None, None, [], None
    shown = torch.stack(said).exp().mean().item()
    return torch.stack(outputs).mean(0), torch.stack(scales).mean(0), right, shown


def _scales(engine, clean: CleanRun, seen) -> torch.Tensor:
    """[prompts, layers, d_model]: the attention's update over the projection's output."""
    layers = range(len(engine.blocks))
    if not engine.family.ffn_scaled:
        written = torch.stack([seen["out", i] for i in layers], 1)
        return torch.full_like(written, engine.update_scale)
    updates = [clean.outputs["attention", i].float() / seen["out", i] for i in layers]
    return torch.stack(updates, 1)


def _answers(readout, clean: CleanRun, rows: list[dict]):
    """(ranks, log probabilities) of the rows' answers at the end of a clean run."""
    tokens = answer_tokens(rows)
    (found,) = decoded(readout, [(clean.last, target_tokens(rows), None)], tokens)
    _, ranks, _, among = found
    places = torch.searchsorted(tokens, torch.tensor([row["answer_tokens"][0] for row in rows]))
    return [answer for _, answer in ranks], among[torch.arange(len(rows)), places]


def measured_in(right: list[list[int]]) -> list[list[int]]:
    """Of the prompts of each set those that effects are measured in, as evenly as they go."""
    places = sorted(
        (place, number) for number, some in enumerate(right) for place in range(len(some))
    )
    counts = [number for _, number in places[:MEASURED]]
    return [some[: counts.count(number)] for number, some in enumerate(right)]


def answer_tokens(rows: list[dict]) -> torch.Tensor:
    """The first tokens of the rows' first answers, each once and in order."""
    return torch.tensor(sorted({row["answer_tokens"][0] for row in rows}))


def indirect_effects(
    engine: Engine,
    readout,
    rows: list[dict],
    means: torch.Tensor,
    progress=lambda *done: None,
    parts: Parts | None = None,
):
    """What each head's mean output adds to the answer's probability in prompts with shuffled answers.

    `rows` share their demonstrations. (effects [prompts, layers, heads], the answer's probability
    without [prompts]). Every head of a prompt is a copy of its last token, run from its layer up.
    What `parts` hold already is not run again.
    """
    parts = parts or Parts()
    section = parts.section()
    tokens = answer_tokens(rows)
    layers = range(len(engine.blocks))
    heads = engine.model.config.num_attention_heads

    def name(number, layer):
        return f"{section}{number} {layer}"

    def done(number, layer):
        return parts.has(name(number, layer))

    def all_done(numbers):
        return all(
            parts.has(name(number, layer)) for number in numbers for layer in (None, *layers)
        )

    def pieces():
        with _projected(engine) as seen:
            # As many variants as tokens: a prompt by itself, whose updates are its own.
            runs = clean_runs(
                engine,
                [row["shuffled_ids"] for row in rows],
                engine.batch_tokens,
                last_only=True,
                done=all_done,
            )
            for clean in runs:
                (number,) = clean.rows
                targets = target_tokens([rows[number]])
                repeated = [tokens.repeat(heads, 1) for tokens in targets]
                yield clean.last, targets, (number, None), name(number, None)
                if all_done(clean.rows):
                    for layer in layers:
                        yield None, repeated, (number, layer), name(number, layer)
                    progress(1, 0)
                    continue
                own = {key: value[0] for key, value in seen.items()}
                edits = [
                    Edit({i: _updates(engine, i, own, means[i])}, "replace", "last", "attention")
                    for i in layers
                ]
                resumed = resume_all(engine, clean, edits, partial(done, number))
                for layer, after in enumerate(resumed):
                    state = None if after is None else after.flatten(0, 1)
                    yield state, repeated, (number, layer), name(number, layer)
                progress(1, heads * len(edits))

    before = torch.zeros(len(rows))
    after = torch.zeros(len(rows), len(layers), heads)
    for (number, layer), _, _, among in decoded(readout, pieces(), tokens, parts):
        place = torch.searchsorted(tokens, rows[number]["answer_tokens"][0])
        if layer is None:
            before[number] = among[0, place].exp()
        else:
            after[number, layer] = among[:, place].exp()
    return after - before[:, None, None], before


def _updates(engine: Engine, layer: int, own, mean: torch.Tensor) -> torch.Tensor:
    """A layer's attention update [heads, d_model] with each head's output the mean, one by one."""
    by_head = matrices(engine, layer)
    moved = (mean - own["in", layer]).view(len(by_head), -1)
    sums = own["out", layer] + torch.einsum("hk,hkd->hd", moved, by_head)
    if not engine.family.ffn_scaled:
        return sums * engine.update_scale
    norm = engine.part(layer, "attention")
    with torch.inference_mode():
        return norm(sums.to(next(norm.parameters()).dtype)).float()


def chosen_heads(effects: torch.Tensor) -> list[tuple[int, int]]:
    """(layer, head) of the heads with the largest mean effect, from effects [layers, heads]."""
    count = max(1, round(SHARE * effects.numel()))
    order = effects.flatten().argsort(descending=True, stable=True)[:count]
    return [divmod(place, effects.shape[1]) for place in order.tolist()]


def vector_of(engine: Engine, heads: list[tuple[int, int]], means, scales) -> torch.Tensor:
    """The sum of the heads' mean outputs, each as it is written to the stream [d_model]."""
    total = torch.zeros(scales.shape[-1], device=means.device)
    for layer, head in heads:
        by_head = matrices(engine, layer)
        total += means[layer].view(len(by_head), -1)[head] @ by_head[head] * scales[layer]
    return total
