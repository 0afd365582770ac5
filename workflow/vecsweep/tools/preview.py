"""What a model is asked: three prompts of each set as they are rendered, and what is dropped and why.

Only the tokenizer is needed. TASK is a task of the config, a packaged one, or a file of your own.
"""

from collections import Counter
from pathlib import Path

from vecsweep import Problem, config, terminal
from vecsweep.files import PACKAGE
from vecsweep.layout import STAGES, Cell
from vecsweep.sweep import Sweep
from vecsweep.tasks.rows import PROMPT_SETS
from vecsweep.terminal import ANSWER, ARGUMENT

SHOWN = 3


def arguments(parser):
    parser.add_argument("model", help="a name under `models` in the config")
    parser.add_argument("task", help="a name under `tasks`, or a task's file")
    parser.add_argument("--configfile", type=Path, default=Path("config.yaml"))
    parser.add_argument("--results", type=Path, default=Path("results"), help="[results]")


def run(args):
    """Print the prompts that stage `prompts` would make of one task for one model."""
    from vecsweep.stages import prompts

    grid = config.load(args.configfile)
    terminal.known("model", args.model, [*grid["models"]], str(args.configfile))
    name = args.task if args.task in grid["tasks"] else add_task(grid, args.task)
    sweep = Sweep(grid, args.results)
    settings = sweep.settings(STAGES["prompts"], Cell(args.model, name))
    reader = reader_of(sweep, args.model)
    others = [reader_of(sweep, other) for other in settings["common"]]
    task = sweep.load_task(name)
    chat = chat_of(sweep, args.model) if settings["chat"] else None
    rows = prompts.build(task, reader.tokenizer, settings, reader.context, others, chat)
    show(terminal.console(), task, rows, reader.tokenizer)


def add_task(grid: dict, task: str) -> str:
    """Give a config a task that it has not, a packaged one or a file's; its name. Problem if none is."""
    if (PACKAGE / "tasks" / f"{task}.yaml").exists():
        grid["tasks"][task] = {}
        return task
    if Path(task.split("#")[0]).exists():
        name = Path(task.split("#")[-1]).stem
        grid["tasks"][name] = {"file": task}
        return name
    packaged = [path.stem for path in (PACKAGE / "tasks").glob("*.yaml")]
    terminal.known("task", task, sorted({*grid["tasks"], *packaged}), "config and package")
    raise Problem(f"no task '{task}'")


def reader_of(sweep: Sweep, model: str):
    """What a model reads with: from its results, its folder, or the hub; no weights are read."""
    from vecsweep.stages.prompts import Reader

    paths = sweep.outputs(STAGES["models"], Cell(model))
    if all(Path(paths[name]).exists() for name in ("description", "tokenizer")):
        return Reader.of(paths["description"], paths["tokenizer"])
    source = sweep.config["models"][model]
    if source["source"] == "package":
        raise Problem(
            f"the tokenizer of '{model}' is inside its weights: "
            f"snakemake --cores all -- {paths['description']}"
        )
    import transformers

    from vecsweep.engine.sources import PLAIN
    from vecsweep.stages.models import plain

    where = source["path"] if source["source"] == "local" else source["id"]
    options = PLAIN
    if source["source"] == "hub":
        options = PLAIN | {"local_files_only": False, "revision": source["revision"]}
    try:
        about = transformers.AutoConfig.from_pretrained(where, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(where, **options)
    except Exception as error:  # transformers, tokenizers and the hub each raise their own
        reason = (str(error) or repr(error)).splitlines()[0]
        raise Problem(f"model '{model}': no tokenizer in {where}: {reason}") from error
    context = getattr(about, "max_position_embeddings", None)
    return Reader(model, plain(model, tokenizer), context)


def chat_of(sweep: Sweep, model: str):
    """A model's chat template: from its results, or its own folder."""
    from vecsweep.stages import prompts
    from vecsweep.tasks.chat import Chat

    described = sweep.outputs(STAGES["models"], Cell(model))["description"]
    source = sweep.config["models"][model]
    if not Path(described).exists() and source["source"] == "local":
        return Chat(model, Path(source["path"]).expanduser())
    return prompts.chat_of(described)


def show(console, task, rows: list[dict], tokenizer) -> None:
    """Print three kept prompts of each set with the answer that is scored, then what is dropped."""
    from rich.text import Text

    from vecsweep.stages.prompts import only_token, text_of

    pairs = {row["prompt_id"]: row for row in rows}
    kept = [row for row in rows if row["dropped"] is None]
    count = len({row["prompt_id"] for row in kept})
    console.print(Text(f"{task.name} ({task.title}): {count} of {len(pairs)} pairs kept"))
    for prompt_set in PROMPT_SETS:
        some = [row for row in kept if row["prompt_set"] == prompt_set]
        if not some:
            console.print(Text(f"\n{prompt_set}: the task has none", style="bold"))
            continue
        console.print(Text(f"\n{prompt_set}", style="bold"))
        for row in some[:: max(1, len(some) // SHOWN)][:SHOWN]:
            console.print(rendered(row, tokenizer, text_of), soft_wrap=True)
    if (token := only_token(rows)) is not None:
        console.print(
            Text(
                f"\nAll answers start with the token {text_of(tokenizer, token)!r}: "
                "their ranks tell no answer from another",
                style=ARGUMENT,
            )
        )
    reasons = Counter(row["dropped"] for row in pairs.values() if row["dropped"])
    console.print(Text("\ndropped" if reasons else "\nnothing is dropped", style="bold"))
    for reason, number in reasons.most_common():
        named = [row["argument"] for row in pairs.values() if row["dropped"] == reason]
        some = ", ".join(named[:SHOWN]) + ", ..." * (number > SHOWN)
        console.print(Text(f"  {number:5d}  {reason} ({some})"), soft_wrap=True)


def rendered(row: dict, tokenizer, text_of):
    """A prompt on its lines, then the answer, with the tokens of it that are scored."""
    from rich.text import Text

    lines = row["text"].split("\n")
    text = Text(
        "\n".join(f"  {'│' if number else '┌'} {line}" for number, line in enumerate(lines))
    )
    scored = ", ".join(repr(text_of(tokenizer, token)) for token in row["answer_tokens"])
    text.append(" ").append(" or ".join(row["answer"].split("|")), f"bold {ANSWER}")
    return text.append(f"   (scored: {scored}; argument {row['argument']})", "dim")
