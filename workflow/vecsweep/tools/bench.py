"""What the engine costs: `python -m vecsweep.tools.bench` runs it and a naive variant in turn.

1. interventions: an o-vector from every start layer to the last, resumed from one clean run,
   against a full forward for each start layer.
2. states and lens: batches, counted ranks and stored states, against one prompt at a time with
   the full vocabulary sorted at each layer, as in the paper's notebooks.
3. states: the forward that keeps every layer's states, against the bare model's.
Both variants must give the same ranks. Nothing is written.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

from vecsweep import Problem, tasks
from vecsweep.stages import prompts
from vecsweep.files import read_json

MODELS = ("gemma3-270m", "smollm2-135m-instruct")
TASK = Path(tasks.__file__).parent / "capitals.yaml"
SEARCH = {"scales": [1.0], "position": "all", "end_depth": 1}
# Rounding moves a rank among thousands of close logits a little: at most by this share, or 1.
RANK_TOLERANCE = 0.01


def arguments(parser):
    parser.add_argument("--model", help=f"a model under --results; default {' or '.join(MODELS)}")
    parser.add_argument("--results", type=Path, default=Path("results"), help="of a sweep")
    parser.add_argument("--pairs", type=int, default=16, help="prompts of each set")
    parser.add_argument("--novel", type=int, default=3, help="prompts of the interventions")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the median counts")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")


def run(args):
    """Time both variants of each row in turn, check their ranks, print the table."""
    import torch

    torch.set_num_threads(args.threads)
    description, engine, readout, rows = prepare(args)
    print(
        f"{description['model']}: {description['parameters'] / 1e6:.0f} M parameters, "
        f"{description['layers']} layers, vocabulary {description['vocabulary']}, "
        f"{description['dtype']}, on {engine.device.type}, {args.threads} thread(s); "
        f"medians of {args.repeats}"
    )
    both = [row for row in rows if row["prompt_set"] != "novel"]
    novel = [row for row in rows if row["prompt_set"] == "novel"][: args.novel]
    vector = o_vector(engine, both)
    pairs = len(both) // 2  # one set after the other
    comparisons = [
        (
            f"interventions, {description['layers']} start layers x {len(novel)} prompts",
            lambda turn: resumed_sweep(engine, readout, novel, vector),
            lambda turn: full_sweep(engine, novel, vector),
            "at most 0.5",
        ),
        (
            f"states and lens, {len(both)} prompts",
            lambda turn: batched_lens(engine, readout, both),
            # Its cost is by the prompt: each round takes another pair's two.
            lambda turn: sorted_lens(engine, readout, both[turn % pairs :: pairs]),
            "at most 0.1",
        ),
        (
            f"states alone, {len(both)} prompts",
            lambda turn: kept_states(engine, both),
            lambda turn: bare_forward(engine, both),
            "",
        ),
    ]
    print(f"{'a prompt':45} {'engine':>10} {'naive':>10} {'ratio':>7}  {'range':>13}  aim")
    for name, ours, naive, aim in comparisons:
        times, equal = compare(name, ours, naive, args.repeats)
        print(table_line(name, times, aim) + equal, flush=True)


def prepare(args):
    """(description, engine, readout, rows of stage prompts) of the model to measure."""
    import transformers

    from vecsweep.engine import load
    from vecsweep.engine.readout import Readout

    folders = [args.results / "models" / name for name in ([args.model] if args.model else MODELS)]
    folder = next((f for f in folders if (f / "model.json").is_file()), None)
    if folder is None:
        raise Problem(f"no {folders[0] / 'model.json'}; run `make` first, or name another --model")
    description = read_json(folder / "model.json")
    engine = load.load(description, folder / "model.json", 2048)
    weights = load.weights_folder(description, folder / "model.json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights, local_files_only=True)
    settings = {"demonstrations": 1, "seed": 0, "max_prompts": args.pairs}
    rows = prompts.build(tasks.load(TASK), tokenizer, settings, description["context"])
    rows = [row for row in rows if row["dropped"] is None]
    readout = Readout.load(folder / "readout.safetensors").to(engine.device)
    return description, engine, readout, rows


def compare(name, ours, naive, repeats):
    """([(seconds, seconds), ...] of both variants in turn, what to say of their ranks).

    A variant returns the number of prompts that it ran and its ranks by key.
    """
    times, ranks = [], ({}, {})
    for turn in range(repeats):
        pair = []
        for variant, found in zip((ours, naive), ranks):
            start = time.perf_counter()
            count, some = variant(turn)
            pair.append((time.perf_counter() - start) / count)
            found.update(some)
        times.append(pair)
    return times, check_ranks(name, *ranks)


def check_ranks(name, found: dict, expected: dict) -> str:
    """Problem unless both variants gave the same ranks, but for rounding."""
    if not expected:
        return ""
    if not expected.keys() <= found.keys():
        raise Problem(f"{name}: the two variants did not rank the same things")
    for key, rank in expected.items():
        if abs(found[key] - rank) > max(1, RANK_TOLERANCE * rank):
            raise Problem(f"{name}: rank {found[key]} at {key}, but {rank} by the naive variant")
    same = sum(found[key] == rank for key, rank in expected.items()) / len(expected)
    return f"  ({len(expected)} ranks: {same:.1%} equal, the rest but for rounding)"


def table_line(name, times, aim) -> str:
    """A line of the table: medians a prompt in ms, their ratio, and its range over the rounds."""
    ours, naive = (median(column) for column in zip(*times))
    ratios = [a / b for a, b in times]
    spread = f"{min(ratios):.3f}-{max(ratios):.3f}"
    return (
        f"{name:45} {ours * 1e3:7.1f} ms {naive * 1e3:7.1f} ms {ours / naive:7.3f}  {spread:>13}"
        f"  {aim:11}"
    )


def o_vector(engine, rows):
    """An FFN update at two thirds of the depth [1, d_model]."""
    from vecsweep.engine.forward import last_token_states

    layer = 2 * len(engine.blocks) // 3
    return last_token_states(engine, [[rows[0]["token_ids"]]])[f"ffn_out.{layer:02d}"].float()


def resumed_sweep(engine, readout, rows, vector):
    """All start layers by stage interventions."""
    from vecsweep.stages.interventions import plan, run_plans

    last = len(engine.blocks) - 1
    plans = [plan(SEARCH, "replace", start, last, vector, [(0, 0)]) for start in range(last + 1)]
    ranks = {}
    for outcome in run_plans(engine, readout, rows, plans):
        key = (outcome["start_layer"], outcome["prompt_id"])
        ranks |= {(*key, name): outcome[f"{name}_rank_after"] for name in ("argument", "answer")}
    return len(rows), ranks


def full_sweep(engine, rows, vector):
    """A full forward for each start layer, in equal-length batches, ranks from all logits."""
    import torch

    from vecsweep.engine.forward import equal_length_batches, first, hooks

    def replace(module, args, output):
        new = vector.to(first(output)).expand_as(first(output))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    layers, ranks = range(len(engine.blocks)), {}
    for start in layers:
        for batch in equal_length_batches([len(r["token_ids"]) for r in rows], engine.batch_tokens):
            ids = torch.tensor([rows[i]["token_ids"] for i in batch], device=engine.device)
            edits = [engine.part(i, "ffn").register_forward_hook(replace) for i in layers[start:]]
            with torch.inference_mode(), hooks(edits):
                logits = engine.model(ids, use_cache=False, logits_to_keep=1).logits[:, -1].float()
            for i, scores in zip(batch, logits):
                for name, tokens in targets_of(rows[i]).items():
                    rank = (scores > scores[tokens].max()).sum().item()
                    ranks[start, rows[i]["prompt_id"], name] = rank
    return len(rows), ranks


def targets_of(row) -> dict:
    return {"argument": [row["argument_token"]], "answer": row["answer_tokens"]}


def kept_states(engine, rows):
    """Stage states, without its file."""
    from vecsweep.engine.forward import last_token_states
    from vecsweep.stages.states import prompt_groups

    last_token_states(engine, prompt_groups(rows))
    return len(rows), {}


def batched_lens(engine, readout, rows):
    """Stages states and lens, without their files."""
    from vecsweep.stages.lens import TARGETS, decode_site, sites, target_tokens
    from vecsweep.engine.forward import last_token_states
    from vecsweep.stages.states import prompt_groups

    states = last_token_states(engine, prompt_groups(rows))
    targets, ranks = target_tokens(rows), {}
    for layer in range(len(engine.blocks)):
        for site, tensor in sites(states, layer, engine.parallel):
            columns = decode_site(readout, tensor, targets, 5)
            for name in TARGETS:
                for row, rank in zip(rows, columns[f"{name}_rank"].tolist()):
                    ranks[row["prompt_set"], row["prompt_id"], layer, site, name] = rank
    return len(rows), ranks


def sorted_lens(engine, readout, rows):
    """One prompt at a time; at each layer and site all logits are sorted."""
    import torch

    from vecsweep.stages.lens import sites
    from vecsweep.engine.forward import captured, run_decoder

    ranks = {}
    for row in rows:
        with torch.inference_mode(), captured(engine) as states:
            run_decoder(engine, torch.tensor([row["token_ids"]], device=engine.device))
            for layer in range(len(engine.blocks)):
                for site, tensor in sites(states, layer, engine.parallel):
                    order = readout.logits(readout.normed(tensor))[0].argsort(descending=True)
                    for name, tokens in targets_of(row).items():
                        rank = min((order == token).nonzero().item() for token in tokens)
                        ranks[row["prompt_set"], row["prompt_id"], layer, site, name] = rank
    return len(rows), ranks


def bare_forward(engine, rows):
    """The decoder on equal-length batches: no hook, no shared beginning."""
    import torch

    from vecsweep.engine.forward import equal_length_batches, run_decoder

    for batch in equal_length_batches([len(r["token_ids"]) for r in rows], engine.batch_tokens):
        ids = torch.tensor([rows[i]["token_ids"] for i in batch], device=engine.device)
        with torch.inference_mode():
            run_decoder(engine, ids)
    return len(rows), {}


def main(argv=None) -> int:
    """Run the bench; bad input gives one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="vecsweep.tools.bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments(parser)
    try:
        run(parser.parse_args(argv))
    except Problem as problem:
        print(f"vecsweep bench: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
