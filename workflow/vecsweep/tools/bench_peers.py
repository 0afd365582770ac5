"""What others do for states and lens: TransformerLens, nnsight, nnterp, and plain torch hooks.

Used as their users would who mind the time: in batches, with no logits but those of the last
token, the states of each site decoded together. A peer runs in an environment of its own, so this
file imports nothing of vecsweep:

    python bench_peers.py REQUEST.json

reads the prompts and loads the model once. Then each line on stdin, {"batch": prompts, "threads": n},
is a run, and gives a line on stdout, {"seconds": s, "ranks": [...]}.
"""

import json
import os
import sys
import time
from functools import reduce
from importlib import metadata
from pathlib import Path

import torch

TOP_K = 10


def at(root, dotted: str):
    """The part of a model at a dotted name."""
    return reduce(getattr, dotted.split("."), root)


def first(output):
    """The tensor of a module's output, which some families wrap in a tuple."""
    return output[0] if isinstance(output, tuple) else output


class Hooks:
    """Plain `transformers` with torch hooks on the blocks and on what reads the mid-block state.

    `names` are the dotted names of decoder, blocks, ffn_norm, final_norm and head, as in `families`.
    """

    package = "transformers"

    def __init__(self, names: dict, folder=None, model=None):
        self.names = names
        self.model = self.load(folder) if model is None else model

    def load(self, folder):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def states(self, ids, rows, last) -> list:
        """Of each layer resid_mid and resid_post [batch, d_model] at token `last` of each row."""
        found, handles = [], []

        def keep_input(module, args, kwargs):
            found.append((args[0] if args else kwargs["hidden_states"])[rows, last])

        for block in at(self.model, self.names["blocks"]):
            norm = at(block, self.names["ffn_norm"])
            handles += [
                norm.register_forward_pre_hook(keep_input, with_kwargs=True),
                block.register_forward_hook(lambda m, a, out: found.append(first(out)[rows, last])),
            ]
        at(self.model, self.names["decoder"])(input_ids=ids, use_cache=False)
        for handle in handles:
            handle.remove()
        return found

    def logits(self, states):
        """Logits [n, vocabulary] of states [n, d_model]."""
        return at(self.model, self.names["head"])(at(self.model, self.names["final_norm"])(states))


class NNsight(Hooks):
    package = "nnsight"

    def load(self, folder):
        from nnsight import TransformersModel

        how = {"device_map": "cpu", "dtype": torch.float32, "dispatch": True}
        return TransformersModel(folder, task="text-generation", **how)

    def states(self, ids, rows, last):
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with self.model.trace(inputs, logits_to_keep=1, use_cache=False):
            found = list().save()  # noqa: C408 - as nnsight documents it
            for block in at(self.model, self.names["blocks"]):
                found.append(at(block, self.names["ffn_norm"]).input[rows, last])
                found.append(first(block.output)[rows, last])
        return found


class NNterp(Hooks):
    package = "nnterp"

    def load(self, folder):
        from nnterp import StandardizedTransformer

        return StandardizedTransformer(folder, device_map="cpu", dtype=torch.float32, dispatch=True)

    def states(self, ids, rows, last):
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with self.model.trace(inputs, logits_to_keep=1, use_cache=False):
            found = list().save()  # noqa: C408 - as nnsight documents it
            for layer in range(self.model.num_layers):
                norm = at(self.model.layers[layer], self.names["ffn_norm"])
                found.append(norm.input[rows, last])
                found.append(self.model.layers_output[layer][rows, last])
        return found

    def logits(self, states):
        return self.model.project_on_vocab(states)


class TransformerLens(Hooks):
    package = "transformer_lens"

    def load(self, folder):
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)

    def states(self, ids, rows, last):
        found = []
        sites = ("hook_resid_mid", "hook_resid_post")
        names = [f"blocks.{i}.{site}" for i in range(self.model.cfg.n_layers) for site in sites]
        hooks = [(name, lambda state, hook: found.append(state[rows, last])) for name in names]
        # Faster than stop_at_layer, which projects every token all the same.
        self.model.run_with_hooks(ids, fwd_hooks=hooks, return_type=None, logits_to_keep=1)
        return found

    def logits(self, states):
        return self.model.unembed(self.model.ln_final(states))


PEERS = {"TransformerLens": TransformerLens, "nnsight": NNsight, "nnterp": NNterp}


def padded(prompts: list, batch: int, device="cpu"):
    """(places in the list, token ids [batch, tokens], last token of each) of batches by length.

    Padded on the right, which no token before it sees: mask and positions need no care.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]["token_ids"]))
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        tokens = [prompts[i]["token_ids"] for i in places]
        width = len(tokens[-1])
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens], device=device)
        yield places, ids, torch.tensor([len(row) - 1 for row in tokens], device=device)


def ranks_of(logits, prompts: list, names=("argument", "answer")) -> list:
    """How many tokens have a larger logit [n, vocabulary] than each target: [name][n]."""
    ranks = []
    for name in names:
        tokens = [
            p["answer_tokens"] if name == "answer" else [p["argument_token"]] for p in prompts
        ]
        width = max(map(len, tokens))
        # The best of several right answers counts; a repeated one changes nothing.
        ids = torch.tensor([row + row[:1] * (width - len(row)) for row in tokens])
        best = logits.gather(1, ids.to(logits.device)).amax(1, keepdim=True)
        ranks.append((logits > best).sum(1).tolist())
    return ranks


def lens(peer, prompts: list, batch: int, device="cpu") -> list[int]:
    """Ranks of argument and answer at each site of each layer, flat; the top tokens are found too."""
    parts, order = [], []
    with torch.inference_mode():
        for places, ids, last in padded(prompts, batch, device):
            rows = torch.arange(len(ids), device=device)
            parts.append(torch.stack(peer.states(ids, rows, last)))
            order += places
        states = torch.empty_like(joined := torch.cat(parts, 1))
        states[:, order] = joined
        found = []
        for site in states:
            logits = peer.logits(site)
            logits.topk(TOP_K)
            for ranks in ranks_of(logits, prompts):
                found += ranks
    return found


def serve(request: dict, answers) -> None:
    """Load a peer, say its versions, then run whatever stdin asks for."""
    torch.set_num_threads(request["threads"])
    peer = PEERS[request["peer"]](request["names"], request["folder"])
    packages = (peer.package, "transformers", "torch")
    said: dict = {"versions": {name: metadata.version(name) for name in packages}}
    while True:
        print(json.dumps(said), file=answers, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        wanted = json.loads(line)
        torch.set_num_threads(wanted["threads"])
        start = time.perf_counter()
        ranks = lens(peer, request["prompts"], wanted["batch"])
        said = {"seconds": time.perf_counter() - start, "ranks": ranks}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is no answer
    serve(json.loads(Path(sys.argv[1]).read_text()), answers)
