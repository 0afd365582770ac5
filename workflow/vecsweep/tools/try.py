"""Add a task's stored vectors to any words of yours: top tokens before and after.

Each word is put into a random context that only names it, as in the sweep's novel prompts. Vectors
are those of the task's own methods, each at its best setting on dev, the best one first.
"""

import copy
import io
import random
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

from vecsweep import Problem, tables, terminal
from vecsweep.files import read_json, read_table
from vecsweep.sweep import block_files
from vecsweep.terminal import ANSWER, ARGUMENT
from vecsweep.tools.show import check_cell, coloured, texts

OWN = ("o-vector", "mean", "difference")  # the others are another task's, or controls
SHOWN = 5


def arguments(parser):
    parser.add_argument("model", help="a folder of results/ovectors")
    parser.add_argument("task", help="one of its tasks, whose vectors are used")
    parser.add_argument("words", nargs="+", metavar="word", help="as Poland; several are tried")
    parser.add_argument("--results", type=Path, default=Path("results"), help="[results]")


def run(args):
    """Load the model, and print a table for each word."""
    check_cell(args.results, "interventions", args.model, args.task)
    cell = f"{args.model}/{args.task}"
    folder = args.results / "interventions" / cell
    search = [
        row
        for path in block_files(args.results, "interventions", args.model, args.task)
        for row in tables.read("interventions", path).to_pylist()
        if row["method"] in OWN
    ]
    if not search:
        able = sorted(
            {path.parent.name for path in folder.parent.glob("*/*.parquet") if rows_in(path)}
        )
        raise Problem(
            f"no prompt of {args.task} is a donor of an o-vector in {args.model}; "
            + (f"these tasks have one: {', '.join(able)}" if able else "nor of any other task")
        )
    if read_json(args.results / "settings" / "prompts" / f"{cell}.json").get("chat"):
        raise Problem(
            f"{args.model} was asked in conversations (chat: true), and words are tried in plain "
            "contexts alone; name a model without it"
        )
    console = terminal.console()
    with console.status(f"loading {args.model}"), redirect_stderr(io.StringIO()):
        tried = Tried(args.results, cell, search)
    for word in args.words:
        show(console, tried, word, args)


def rows_in(path: Path) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


class Tried:
    """A loaded model, and its task's vectors, each at its best setting: `plans` by method."""

    def __init__(self, results: Path, cell: str, search: list[dict]):
        from tokenizers import Tokenizer

        from vecsweep.engine import load
        from vecsweep.engine.readout import Readout
        from vecsweep.methods import METHODS, Donors, Material
        from vecsweep.methods.grid import best_settings, plan
        from vecsweep.tasks.rows import NOVEL, kept_rows

        model = results / "models" / cell.split("/")[0]
        prompts = results / "prompts" / f"{cell}.parquet"
        self.settings = read_json(results / "settings" / "interventions" / f"{cell}.json")
        self.own = kept_rows(prompts, NOVEL)
        # Where words have no space before them each of a novel prompt's parts begins a line.
        self.space = "" if self.own[0]["text"].endswith("\n") else " "
        # Those over max_prompts have tokens too.
        every = read_table(prompts, where={"prompt_set": "novel"}).to_pylist()
        self.known = {row["argument"].casefold(): row for row in every if row["answer_tokens"]}
        self.donors = Donors(results / "ovectors" / f"{cell}.safetensors")
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        described = model / "model.json"
        self.context = read_json(described)["context"]
        self.engine = load.load(read_json(described), described, batch_tokens=2048)
        self.readout = Readout.load(model / "readout.safetensors").to(self.engine.device)
        source = SimpleNamespace(prompts=prompts, rival=[], settings=self.settings)
        found = best_settings(search)
        self.plans, self.how = {}, {}
        for method in sorted(found, key=lambda name: -dev_score(search, name, found[name])):
            at = found[method]
            layer = at["source_layer"]
            # Of no other layer: a difference runs the prompts of all donors that it is given.
            donors = copy.copy(self.donors)
            donors.flips = {layer: self.donors.flips[layer]}
            material = Material.of(source, self.engine, self.own, donors)
            vector = METHODS[method].search(material, layer)[0]
            place = at["start_layer"], at["end_layer"], at["mode"], [at["scale"]]
            self.plans[method] = plan([vector], self.settings, *place)[0]
            self.how[method] = in_words(at)

    def decoded(self, text: str, targets: list[list[int]]):
        """What is decoded after a text: row 0 before, then a row a method."""
        import torch

        from vecsweep.engine.decoding import decode
        from vecsweep.engine.edits import clean_runs, resume

        ids = self.tokenizer.encode(text).ids
        (clean,) = clean_runs(self.engine, [ids], 1)
        states = [clean.last]
        for plan in self.plans.values():
            states.append(resume(self.engine, clean, plan.edit)[0])
        rows = [torch.tensor([tokens] * len(states)) for tokens in targets]
        wanted = [tokens.to(self.engine.device) for tokens in rows]
        with torch.inference_mode():
            return decode(self.readout, torch.cat(states), wanted, SHOWN)


def dev_score(search: list[dict], method: str, setting: dict) -> float:
    """Mean reciprocal rank of the answer on dev, of a method at a setting."""
    ranks = [
        row["answer_rank_after"]
        for row in search
        if row["method"] == method and setting.items() <= row.items()
    ]
    return sum(1 / (1 + rank) for rank in ranks) / len(ranks)


def in_words(setting: dict) -> str:
    """A setting: of layer 12, added to 13-17."""
    first, last = setting["start_layer"], setting["end_layer"]
    layers = f"layer {first}" if first == last else f"layers {first}-{last}"
    edit = "added to" if setting["mode"] == "add" else "in place of"
    scale = f"{setting['scale']:g} x " * (setting["scale"] != 1)
    return f"{scale}layer {setting['source_layer']}, {edit} {layers}"


def show(console, tried: Tried, word: str, args) -> None:
    """Print the table of one word: a row before, a row for each vector."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from vecsweep import tasks
    from vecsweep.stages.prompts import continuation

    if not word.strip():
        raise Problem("an empty word; give one, as Poland")
    seed = random.Random(f"{tried.settings['seed']} {word}")
    text = tasks.novel_prompt({"argument": word}, tasks.random_words(), seed, tried.space)
    encode = tried.tokenizer.encode
    context = tried.context
    if context and len(encode(text).ids) >= context:
        raise Problem(
            f"'{word[:20]}...' makes a prompt longer than the model's context of {context} tokens; "
            "try a shorter word"
        )
    argument = continuation(encode(text).ids, encode(f"{text}{tried.space}{word}").ids)
    if not argument:
        raise Problem(f"'{word}' changes the tokens of its prompt; try another word")
    row = tried.known.get(word.casefold())
    answers = row["answer_tokens"] if row else []
    targets = [argument[:1], answers] if row else [argument[:1]]
    found = tried.decoded(text, targets)
    said = Text.assemble((word, f"bold {ARGUMENT}"))
    if row:
        said.append(" → ").append(row["answer"].split("|")[0], f"bold {ANSWER}")
        if row["prompt_id"] in tried.donors.used:
            said.append("  (the vectors are made of this prompt too)", "dim")
    console.print(said.append(f"\n{text}", "italic"))
    top = found.top_token.tolist()
    words = texts(args.results, args.model, {token for tokens in top for token in tokens})
    look = {"caption": "ranks from 0, the top", "caption_justify": "right"}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, **look)
    table.add_column("vector", no_wrap=True)
    table.add_column("of and into FFNs", no_wrap=True)
    table.add_column("top tokens", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("argument\nrank", justify="right", style=ARGUMENT, min_width=8)
    if row:
        table.add_column("answer\nrank", justify="right", style=ANSWER, min_width=7)
    names = [("before", ""), *tried.how.items()]
    for (method, how), tokens, ranks in zip(names, top, found.rank.tolist()):
        shown = coloured(tokens, words, argument[0], answers)
        table.add_row(method, how, shown, *(f"{rank:,}" for rank in ranks))
    console.print(table)
