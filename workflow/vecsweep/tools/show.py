"""One prompt, layer by layer: top tokens, ranks of argument and answer, stages. From stored results.

No model is loaded. Without an argument it shows a prompt in which an FFN turned the argument into
the answer, if the task has one. A rank is the number of tokens with a larger logit: 0 is the top.
"""

from pathlib import Path

from vecsweep import Problem, terminal
from vecsweep.files import read_table
from vecsweep.sweep import block_files
from vecsweep.terminal import ANSWER, APPLIED, ARGUMENT

SITES = {
    "resid_mid": "after attention",
    "attention_alone": "attention alone",
    "ffn_alone": "FFN alone",
    "resid_post": "after the block",
}
STREAM = ("resid_mid", "resid_post")  # the others are no states that a layer passes on
UPDATES = {
    "ffn": "FFN",
    "attention": "attention",
    "both": "either update",
    "joint": "both updates",
}


def arguments(parser):
    parser.add_argument("model", help="a folder of results/lens")
    parser.add_argument("task", help="one of its tasks")
    parser.add_argument("argument", nargs="?", help="of the prompt, as Poland")
    parser.add_argument("--results", type=Path, default=Path("results"), help="[results]")


def run(args):
    """Print the layer table of one abstractive prompt."""
    check_cell(args.results, "stages", args.model, args.task)
    cell = f"{args.model}/{args.task}"
    one_set = {"prompt_set": "abstractive"}
    prompts = read_table(args.results / "prompts" / f"{cell}.parquet", where=one_set).to_pylist()
    found = read_table(args.results / "stages" / f"{cell}.parquet", where=one_set).to_pylist()
    stages = {row["prompt_id"]: row for row in found}
    prompt = chosen(prompts, stages, args.argument, args.task)
    stage = stages[prompt["prompt_id"]]
    cells = lens_of(args.results, cell, prompt["prompt_id"])
    known = {token for row in cells.values() for token in row["top_token"]}
    words = texts(args.results, args.model, known)
    show(terminal.console(), prompt, stage, cells, words)


def check_cell(results: Path, stage: str, model: str, task: str) -> None:
    """Problem unless a stage has results of the model and task; it says which there are."""
    folder = results / stage
    models = sorted(path.name for path in folder.glob("*") if path.is_dir())
    terminal.known("model", model, models, str(folder))
    tasks = sorted({path.stem for path in (folder / model).iterdir()})
    terminal.known("task", task, tasks, str(folder / model))


def chosen(prompts: list[dict], stages: dict[int, dict], argument: str | None, task: str) -> dict:
    """The prompt with an argument, or the one that shows the stages best; Problem if none is there."""
    kept = [row for row in prompts if row["prompt_id"] in stages]
    if argument is None:
        return min(kept, key=lambda row: clarity(row, stages[row["prompt_id"]]))
    folded = argument.casefold()
    for row in kept:
        if row["argument"].casefold() == folded:
            return row
    for row in prompts:
        if row["argument"].casefold() == folded:
            raise Problem(f"'{argument}' was dropped from {task}: {row['dropped']}; take another")
    terminal.known("argument", argument, [row["argument"] for row in kept], task)
    raise Problem(f"no argument '{argument}' in {task}")


def clarity(prompt: dict, stage: dict) -> tuple:
    """Sorts prompts as view `stage_examples` does: the clearest example of the stages first."""
    return (
        prompt["argument_token"] in prompt["answer_tokens"],
        stage["pattern"] != "argument-function",
        stage["pattern"] == "incorrect",
        stage["flip_layer"] is None,
        stage["function_site"] != "ffn",
        prompt["argument_length"] + prompt["answer_length"],
        prompt["prompt_id"],
    )


def lens_of(results: Path, cell: str, prompt_id: int) -> dict[tuple[int, str], dict]:
    """(layer, site) -> row of table `lens`, of one abstractive prompt."""
    model, task = cell.split("/")
    wanted = {"prompt_set": "abstractive", "prompt_id": prompt_id}
    rows = [
        row
        for path in block_files(results, "lens", model, task)
        for row in read_table(path, where=wanted).to_pylist()
    ]
    if not rows:
        raise Problem(
            f"{results / 'lens' / cell} has not this prompt; run the sweep to its end: make"
        )
    return {(row["layer"], row["site"]): row for row in rows}


def texts(results: Path, model: str, tokens: set[int]) -> dict[int, str]:
    """Token -> its text, of those asked for."""
    path = results / "models" / model / "vocabulary.parquet"
    table = read_table(path, columns=["token_id", "token"])
    ids = table["token_id"].to_numpy()
    if len(ids) and (ids == range(len(ids))).all():
        said = table["token"]
        return {t: said[t].as_py() for t in tokens if t < len(ids)}
    return dict(zip(ids.tolist(), table["token"].to_pylist()))


def printable(token: str) -> str:
    """A token's text on one line, without the space before it."""
    text = token.removeprefix(" ") or token
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def coloured(tokens: list[int], words: dict[int, str], argument: int, answers: list[int]):
    """Tokens as rich text, the first of them strong, argument and answer in their colours."""
    from rich.text import Text

    text = Text(no_wrap=True, overflow="ellipsis")
    for place, token in enumerate(tokens):
        colour = ARGUMENT if token == argument else ANSWER if token in answers else ""
        look = " ".join(part for part in ("bold" if place == 0 else "", colour) if part)
        text.append("  " * bool(place))
        text.append(printable(words.get(token, f"<{token}>")), look or None)
    return text


def show(console, prompt: dict, stage: dict, cells: dict, words: dict[int, str]) -> None:
    """Print a prompt and the table of its layers, a row each, both or three sites beside."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    answer = prompt["answer"].split("|")[0]
    head = Text.assemble(
        f"{prompt['model']}, {prompt['task']}: ",
        (prompt["argument"], f"bold {ARGUMENT}"),
        " → ",
        (answer, f"bold {ANSWER}"),
        f" (prompt {prompt['prompt_id']}, {stage['pattern']})",
    )
    console.print(head)
    console.print(Text(prompt["text"], style="italic"))
    sites = [site for site in SITES if any(site == found for _, found in cells)]
    layers = sorted({layer for layer, _ in cells})
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("layer", justify="right")
    for site in sites:
        table.add_column(SITES[site], ratio=1, no_wrap=True, overflow="ellipsis", min_width=12)
        if site in STREAM:
            for name, colour in (("arg.\nrank", ARGUMENT), ("ans.\nrank", ANSWER)):
                table.add_column(name, justify="right", style=colour, no_wrap=True)
    table.add_column("stage", no_wrap=True)
    table.expand = True
    for layer in layers:
        row = [str(layer)]
        for site in sites:
            cell = cells[layer, site]
            top = cell["top_token"][:3]
            row.append(coloured(top, words, prompt["argument_token"], prompt["answer_tokens"]))
            if site in STREAM:
                row += [f"{cell['argument_rank']:,}", f"{cell['answer_rank']:,}"]
        table.add_row(*row, marked(layer, stage))
    console.print(table)
    console.print(
        Text.assemble(
            ("Top three tokens of each state; rank 0 is the top. ", "dim"),
            ("argument", ARGUMENT),
            (" (formed: on top before the answer first is), ", "dim"),
            ("answer", ANSWER),
            (" (saturated: on top to the end, from the layer that ", "dim"),
            ("applied", APPLIED),
            (" the function). flip: an FFN turned one into the other.", "dim"),
        )
    )


def marked(layer: int, stage: dict):
    """What a layer does in the three stages, as rich text."""
    from rich.text import Text

    first, last, applied = (stage[k] for k in ("argument_first", "argument_last", "function_layer"))
    said = []
    if first is not None and first <= layer <= last:
        said.append(("formed", ARGUMENT))
    if layer == applied:
        said.append((f"applied: {UPDATES.get(stage['function_site'], '')}", APPLIED))
    if layer == stage["flip_layer"]:
        said.append(("flip", APPLIED))
    if applied is not None and layer > applied:
        said.append(("saturated", ANSWER))
    return Text(", ").join([Text(*part) for part in said])
