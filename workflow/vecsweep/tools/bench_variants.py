"""The variants that `vecsweep bench` runs in turn: ours, and those that it is measured against."""

import torch
import transformers

from vecsweep import Problem, tasks
from vecsweep.engine import load
from vecsweep.engine.forward import (
    captured,
    equal_length_batches,
    first,
    hooks,
    last_token_states,
    run_decoder,
)
from vecsweep.engine.plans import Plan, run_plans
from vecsweep.engine.readout import Readout, target_tokens
from vecsweep.files import PACKAGE, read_json
from vecsweep.stages import prompts
from vecsweep.stages.lens import TARGETS, decode_site, sites
from vecsweep.tasks.rows import all_answers, prompt_groups

MODELS = ("gemma3-270m", "smollm2-135m-instruct")
TASK = PACKAGE / "tasks" / "capitals.yaml"


def prepare(args):
    """(description, engine, readout, rows of stage prompts) of the model to measure."""
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


def o_vector(engine, rows):
    """An FFN update at two thirds of the depth [1, d_model]."""
    layer = 2 * len(engine.blocks) // 3
    return last_token_states(engine, [[rows[0]["token_ids"]]])[f"ffn_out.{layer:02d}"].float()


def resumed_sweep(engine, readout, rows, vector):
    """All start layers by stage interventions."""
    last = len(engine.blocks) - 1
    plans = [Plan(start, last, "replace", "all", vector, [{}]) for start in range(last + 1)]
    ranks = {}
    for outcome in run_plans(engine, readout, rows, plans, all_answers(rows)):
        key = (outcome["start_layer"], outcome["prompt_id"])
        ranks |= {(*key, name): outcome[f"{name}_rank_after"] for name in ("argument", "answer")}
    return len(rows), ranks


def full_sweep(engine, rows, vector):
    """A full forward for each start layer, in equal-length batches, ranks from all logits."""

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
    last_token_states(engine, prompt_groups(rows))
    return len(rows), {}


def batched_lens(engine, readout, rows):
    """Stages states and lens, without their files."""
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
    for batch in equal_length_batches([len(r["token_ids"]) for r in rows], engine.batch_tokens):
        ids = torch.tensor([rows[i]["token_ids"] for i in batch], device=engine.device)
        with torch.inference_mode():
            run_decoder(engine, ids)
    return len(rows), {}
