"""Models built by hand: weights set, not trained, so that what the workflow must find is known.

A planted model answers one relation, by design:
  block 0  one head copies the argument mentioned last to every token, which then says that
           argument; another brings a flag from the word that names the relation;
  block 1  one head copies the answer of that argument, if it stands in the prompt;
  block 2  where the flag is, ONE sublayer adds ONE vector, the same for all arguments, that turns
           "say the argument" into "say its answer": the FFN, or in the twin attention.
The FFNs of the other blocks add vectors that mean nothing, so that the right one must be found.

In the look-up twin the same FFN knows the facts instead: a neuron an argument, which adds that
argument's own answer. In the class twin an answer has nothing in common with its argument: the FFN's
vector says "an answer", and no more.

The stream is a sum of features: rows of an orthonormal matrix, each of mean zero, so that a layer
norm only scales it. One constant feature is much longer than the rest and keeps that scale steady.
"""

import math
import re

import torch
import transformers

from vecsweep import tasks

FORMS = ("gpt2", "gptj", "bloom")
LAYERS, LAYER = 4, 2  # blocks, and the one that applies the function
D_MODEL, HEADS, ROTARY = 512, 8, 8
CONTEXT = 64
RELATION = "county"  # the word that brings the flag; stands in no random context
COUNT, OUTSIDE = 24, 6  # pairs, of which the last ones are out-of-domain
CONSTANT = 10.0  # length of the constant feature
SAYS, LEANS = 3.0, 2.0  # how far block 0 says the argument, and leans to arguments over answers
STEP = 3.0  # length of the planted vector; flips the lean for good
KNOWN = 10.0  # how far a looked-up answer is said: over any other answer that the stream would say

_STEMS = ["Bal", "Cor", "Den", "Fal", "Gor", "Hal", "Jor", "Kel", "Lor", "Mel", "Nor", "Pel"]
ARGUMENTS = [stem + end for end in ("land", "stan") for stem in _STEMS]
ANSWERS = [stem + end for end in ("ville", "burg") for stem in _STEMS]
TASK = {
    "title": "Planted towns",
    "kind": "one-to-one",
    "data": "towns.csv",
    "templates": [f"Q: What is the {RELATION} town of {{argument}}?\nA: {{answer}}"],
    "separator": "\n",
    "extractive": {"prefix": f"The {RELATION} town of {{argument}} is {{answer}}.\n"},
    "out_of_domain": {"group": "outside"},
}


def write_task(folder):
    """Write the relation as a task file and its table; returns the task file."""
    import yaml

    lines = ["argument,answer,group"]
    for number, pair in enumerate(zip(ARGUMENTS, ANSWERS)):
        lines.append(",".join([*pair, "inside" if number < COUNT - OUTSIDE else "outside"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "towns.csv").write_text("\n".join(lines) + "\n")
    (folder / "towns.yaml").write_text(yaml.safe_dump(TASK))
    return folder / "towns.yaml"


def words() -> list[str]:
    """The vocabulary: arguments, answers, the words of the templates and of random contexts."""
    text = TASK["templates"][0] + TASK["extractive"]["prefix"]
    plain = re.findall(r"\w+|[^\w\s]", re.sub(r"{\w+}", "", text))
    return list(dict.fromkeys(["<unknown>", *ARGUMENTS, *ANSWERS, *plain, *tasks.random_words()]))


def tokenizer():
    """One token a word or punctuation mark."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(words())}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unknown>")


class Features:
    """Directions of the stream: `lean`, `flag` and so on, and codes [COUNT, D_MODEL] of pairs."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        names = ["constant", "place", "is_argument", "is_answer", "is_relation", "flag", "lean"]
        noise = torch.randn(D_MODEL, D_MODEL - 1, generator=self.generator, dtype=torch.float64)
        # Orthonormal to each other and to the vector of ones, which the layer norm removes.
        ones = torch.ones(D_MODEL, 1, dtype=torch.float64)
        basis = torch.linalg.qr(torch.cat([ones, noise], 1)).Q.T[1:].float()
        for name in names:
            setattr(self, name, basis[0])
            basis = basis[1:]
        self.pair, self.copied, self.rest = basis.split([COUNT, COUNT, len(basis) - 2 * COUNT])

    def embedding(self, shared=True):
        """Token vectors [vocabulary, D_MODEL], which are also those of the LM head.

        An argument and its answer share a code, if `shared`, and lean to opposite sides; other
        words differ in directions that nothing reads.
        """
        vectors = []
        for word in words():
            vector = CONSTANT * self.constant
            if word in ARGUMENTS:
                code = self.pair[ARGUMENTS.index(word)]
                vector = vector + code - self.lean + 0.5 * self.is_argument
            elif word in ANSWERS:
                number = ANSWERS.index(word)
                # Without codes some answers are likelier than others, whatever is asked.
                vector = vector + (self.pair[number] if shared else 0.01 * number * self.lean)
                vector = vector + self.lean
                vector = vector + 0.5 * self.copied[number] + 0.5 * self.is_answer
            else:
                noise = torch.randn(len(self.rest), generator=self.generator)
                vector = vector + 0.3 * (noise / noise.norm()) @ self.rest
                vector = vector + 0.5 * (word == RELATION) * self.is_relation
            vectors.append(vector)
        return torch.stack(vectors)


def planted_vector(features) -> torch.Tensor:
    """The vector that block LAYER adds [D_MODEL]."""
    return STEP * features.lean


# A head is (asks, keys, reads, writes, nearest), each but the last [n, D_MODEL]: a token attends
# by the sum of the products of asks and keys, and gets what the others read, as writes; `nearest`
# says that of the tokens with its only key it means the one mentioned last.


def _rows(*rows):
    return torch.stack(rows)


def _heads(f, form, site) -> dict[int, list]:
    """layer -> heads. Embedded flags and `copied` codes are 0.5 long, hence the factors of 2."""
    always = f.constant / CONSTANT
    asks, keys = [600 * always], [f.is_argument]
    if form == "gpt2":  # by its learned positions; BLOOM's alibi and GPT-J's rotation do without
        asks, keys = [*asks, 128 * always], [*keys, f.place]
    last_argument = (
        _rows(*asks),
        _rows(*keys),
        torch.cat([f.pair, 2 * f.is_argument[None]]),
        torch.cat([SAYS * f.pair, -LEANS * f.lean[None]]),
        True,
    )
    to_relation = _rows(600 * always), _rows(f.is_relation), _rows(2 * f.is_relation)
    # An answer whose argument is asked for (its own code besides the argument's) above words with
    # that argument above other answers; only answers give anything.
    same = 60 * f.pair / SAYS, f.pair / SAYS
    copy = (
        torch.cat([same[0], 60 * always[None]]),
        torch.cat([same[1], f.is_answer[None]]),
        2 * f.copied,
        6 * LEANS * f.copied,  # outweighs twice the lean
        False,
    )
    if site == "linear":  # no state but the argument's own has it, up to block 1
        return {1: [(*last_argument[:2], f.pair, KNOWN * f.copied, True)]}
    heads = {0: [last_argument, (*to_relation, _rows(f.flag), False)], 1: [copy]}
    if site == "attention":
        heads[LAYER] = [(*to_relation, _rows(planted_vector(f)), False)]
    return heads


def _neurons(f, site) -> dict[int, tuple]:
    """layer -> (reads, writes) [neurons, D_MODEL]: each neuron's input and output weights."""
    always = f.constant / CONSTANT
    # 10 passes a GELU unchanged, -10 gives zero.
    neurons = {i: (_rows(10 * always), _rows(STEP * f.rest[i] / 10)) for i in range(LAYERS)}
    if site in ("ffn", "class"):
        neurons[LAYER] = _rows(20 * f.flag - 10 * always), _rows(planted_vector(f) / 10)
    if site == "lookup":  # 10 where the flag is and that argument is said, below 0 without either
        asked = 20 * f.flag + 20 * f.pair / SAYS - 30 * always
        neurons[LAYER] = asked, (planted_vector(f) + KNOWN * f.copied) / 10
    return neurons


def _model(form):
    sizes = {"vocab_size": len(words()), "n_layer": LAYERS, "n_head": HEADS}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    if form == "bloom":
        sizes |= {"hidden_size": D_MODEL}
    else:
        sizes |= {"n_embd": D_MODEL, "n_positions": CONTEXT, "n_inner": COUNT}
    if form == "gptj":
        sizes |= {"rotary_dim": ROTARY}
    config = transformers.AutoConfig.for_model(form, **sizes, **special)
    return transformers.AutoModelForCausalLM.from_config(config).float().eval()


def _attention_matrices(form, heads):
    """(query, key, value, output), each [D_MODEL out, D_MODEL in], of one block's heads."""
    size = D_MODEL // HEADS
    query, key, value, output = torch.zeros(4, D_MODEL, D_MODEL)
    for number, (asks, keys, reads, writes, nearest) in enumerate(heads):
        rows = torch.arange(len(asks)) + number * size
        if form == "gptj":
            # The second pair of rows is turned by 0.1 a token, so that what is near fits best;
            # those from ROTARY on are not turned at all.
            rows = rows + (2 if nearest else ROTARY)
        query[rows] = asks * math.sqrt(size)  # attention divides by it
        key[rows] = keys
        rows = torch.arange(len(reads)) + number * size
        value[rows] = reads
        output[:, rows] = writes.T
    return query, key, value, output


@torch.no_grad()
def build(form, site="ffn"):
    """(model, planted vector): a causal LM of a form, its function applied by `site`.

    A site is `ffn`, `attention`, `lookup` for an FFN that recalls each answer, `class` for one
    whose vector is all that answers have, or `linear` for a head of block 1 that reads the argument
    where it stands and writes what one matrix makes of it: its answer.
    """
    f = Features()
    model = _model(form)
    for parameter in model.parameters():
        parameter.zero_()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            # Undoes the norm's scaling, as far as the constant feature makes up the stream.
            module.weight.fill_(CONSTANT / math.sqrt(D_MODEL))
    decoder = model.transformer
    embedding = f.embedding(shared=site != "class")
    model.get_input_embeddings().weight.copy_(embedding)
    model.get_output_embeddings().weight.copy_(embedding)
    if form == "gpt2":
        places = torch.arange(CONTEXT)[:, None] / CONTEXT
        decoder.wpe.weight.copy_(places * f.place)
    for layer, block in enumerate(decoder.h):
        heads = _heads(f, form, site).get(layer, [])
        query, key, value, output = _attention_matrices(form, heads)
        reads, writes = _neurons(f, site)[layer]
        if form == "gpt2":
            block.attn.c_attn.weight.copy_(torch.cat([query, key, value]).T)
            block.attn.c_proj.weight.copy_(output.T)
            block.mlp.c_fc.weight[:, : len(reads)] = reads.T
            block.mlp.c_proj.weight[: len(reads)] = writes
        elif form == "gptj":
            block.attn.q_proj.weight.copy_(query)
            block.attn.k_proj.weight.copy_(key)
            block.attn.v_proj.weight.copy_(value)
            block.attn.out_proj.weight.copy_(output)
            block.mlp.fc_in.weight[: len(reads)] = reads
            block.mlp.fc_out.weight[:, : len(reads)] = writes.T
        else:
            # Head by head, and in each head query, key and value.
            fused = torch.stack([m.view(HEADS, -1, D_MODEL) for m in (query, key, value)], 1)
            block.self_attention.query_key_value.weight.copy_(fused.flatten(0, 2))
            block.self_attention.dense.weight.copy_(output)
            block.mlp.dense_h_to_4h.weight[: len(reads)] = reads
            block.mlp.dense_4h_to_h.weight[:, : len(reads)] = writes.T
    return model, planted_vector(f)


def save(folder, form, site="ffn"):
    """Save a planted model and its tokenizer in hub format; returns the planted vector."""
    model, vector = build(form, site)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return vector
