"""What `vecsweep bench` measured, as a figure and as the README's table."""

from pathlib import Path

from vecsweep import Problem
from vecsweep.files import read_json, replacing, write_json

MEASURED = Path("docs") / "measured" / "bench.json"
README = Path("README.md")
MARKS = ("<!-- from docs/measured/bench.json: vecsweep bench --readme -->", "<!-- end of bench -->")
PEERS = ("TransformerLens", "nnsight", "nnterp")
COLUMNS = (*PEERS, "plain hooks", "whole forwards", "floor", "vecsweep, 1 thread")
# Two variants that are never in one row share a column.
WHOLE = ("bare forward", "full forwards")


def measured(folder: Path) -> dict:
    """File name -> content of all that was measured, one thread first; Problem if nothing was."""
    found = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    if not found:
        raise Problem(f"nothing was measured in {folder}; run `make bench`")
    return found


def title(content: dict) -> str:
    """What was measured and where: `gemma3-270m, 1 thread, fast bfloat16`."""
    if content["device"] == "cuda":
        return f"{content['model']}, {content['host']}, {content['dtype']}"
    count = content["threads"]
    able = ", fast bfloat16" * content["fast_bfloat16"]
    if "core_gflops" in content:
        able = ", " + " / ".join(f"{speed:.0f}" for speed in content["core_gflops"]) + " GFLOP/s"
    return f"{content['model']}, {count} thread{'s' * (count > 1)}{able}"


def table(results: dict) -> str:
    """The measured rows in Markdown: seconds of ours, and the others' as multiples of it."""
    lines = [
        "| " + " | ".join(["model", "what", "prompts", "ours", *COLUMNS]) + " |",
        "| " + " | ".join(["---"] * (4 + len(COLUMNS))) + " |",
    ]
    for content in results.values():
        for row in content["rows"]:
            cells = dict.fromkeys(COLUMNS, "")
            for variant in row["variants"]:
                name = "whole forwards" if variant["name"] in WHOLE else variant["name"]
                if name in cells:
                    spread = f"{variant['low']:.2f} to {variant['high']:.2f}"
                    cells[name] = f"{variant['ratio']:.2f} ({spread})"
            ours = f"{row['variants'][0]['median']:.1f} s"
            front = [title(content), row["name"], str(row["prompts"]), ours]
            lines.append("| " + " | ".join([*front, *cells.values()]) + " |")
    return "\n".join(lines)


def with_table(text: str, results: dict) -> str:
    """A README's text with the table between its marks."""
    begin, end = MARKS
    if text.count(begin) != 1 or text.count(end) != 1:
        raise Problem(f"{README}: the lines '{begin}' and '{end}' do not stand there once each")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{table(results)}\n{end}{rest.partition(end)[2]}"


def write_readme(folder: Path) -> None:
    """Copy what was measured to docs/measured, and put its table into the README."""
    results = measured(folder)
    text = with_table(README.read_text("utf-8"), results)
    write_json(results, MEASURED)
    with replacing(README) as temporary:
        temporary.write_text(text, "utf-8")


def draw(folder: Path) -> None:
    """bench.svg and bench.png: a panel for each row, a bar for each variant."""
    import matplotlib

    from vecsweep.figures.drawing import style

    with matplotlib.rc_context(style()):
        figure = chart(measured(folder))
        with replacing(folder / "bench.svg") as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
        with replacing(folder / "bench.png") as temporary:
            figure.savefig(temporary, format="png", dpi=300, metadata={"Software": None})


def chart(results: dict):
    """Horizontal bars of each variant's time over ours, with the range over the rounds."""
    import matplotlib.figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from vecsweep.figures.drawing import ANSWER, APPLIED, GREY, NEUTRAL, OCHRE

    colours = dict.fromkeys(PEERS, ANSWER) | {"vecsweep, 1 thread": APPLIED}
    colours |= {"plain hooks": GREY, "floor": OCHRE}
    rows = [(title(content), row) for content in results.values() for row in content["rows"]]
    heights = [len(row["variants"]) for _, row in rows]
    figure = matplotlib.figure.Figure(
        figsize=(5.6, 0.17 * sum(heights) + 0.52 * len(rows) + 0.4), layout="constrained"
    )
    panels = figure.subplots(
        len(rows), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for panel, (said, row) in zip(panels, rows):
        ours, *others = row["variants"]
        panel.set_title(
            f"{said}\n{row['name']}, {row['prompts']} prompts, ours {ours['median']:.1f} s",
            loc="left",
            fontsize=7,
        )
        for place, variant in enumerate(others):
            ratio, low, high = variant["ratio"], variant["low"], variant["high"]
            # From 1: the length of a bar is how far from ours.
            panel.barh(
                place, ratio - 1, left=1, height=0.72, color=colours.get(variant["name"], NEUTRAL)
            )
            panel.plot([low, high], [place, place], color="black", linewidth=1)
            side, look = (high, "left") if ratio >= 1 else (low, "right")
            panel.annotate(
                f"{ratio:.2f}",
                (side, place),
                (3 if ratio >= 1 else -3, 0),
                textcoords="offset points",
                ha=look,
                va="center",
                fontsize=6.5,
            )
        panel.set_yticks(range(len(others)), [variant["name"] for variant in others])
        panel.set_ylim(len(others) - 0.4, -0.6)
        panel.axvline(1, color="black", linewidth=0.6)
        panel.set_xscale("log")
        panel.tick_params(axis="y", length=0)
    ends = [(v["low"], v["high"]) for _, row in rows for v in row["variants"]]
    last = panels[-1]
    last.set_xlim(min(0.45, *(0.8 * low for low, _ in ends)), 1.4 * max(high for _, high in ends))
    last.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    last.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    last.xaxis.set_minor_formatter(NullFormatter())
    last.set_xlabel("time over ours (right of 1: ours is faster), with the range over the rounds")
    return figure
