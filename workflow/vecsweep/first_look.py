"""A run's first picture: argument and answer by layer in two lines of text, minutes before the figures."""

from pathlib import Path

from vecsweep import Problem, tables
from vecsweep.sweep import block_files
from vecsweep.terminal import ANSWER, ARGUMENT

LENS = ("model", "task", "prompt_set", "prompt_id", "layer", "site", "argument_rank", "answer_rank")
PROMPT = ("prompt_set", "prompt_id", "out_of_domain")
STAGE = ("prompt_set", "prompt_id", "pattern")
LEVELS = "▁▂▃▄▅▆▇█"
MEANS = """
SELECT any_value(model), any_value(task), count(DISTINCT prompt_id),
       avg(1 / (1 + argument_rank)), avg(1 / (1 + answer_rank))
FROM lens
SEMI JOIN (
    FROM stages JOIN prompts USING (prompt_set, prompt_id)
    WHERE prompt_set = 'abstractive' AND pattern <> 'incorrect' AND NOT out_of_domain
) AS own USING (prompt_set, prompt_id)
WHERE site = 'resid_post'
GROUP BY layer
ORDER BY layer
"""


def first_look(stages: Path) -> list:
    """Lines of rich text: mean reciprocal rank of argument and answer after each layer.

    `stages` is a task's file of that stage, .../stages/MODEL/TASK.parquet; the lens files stand
    beside. Of the in-domain abstractive prompts answered right (paper section 4); none if there are
    none, or if a file is damaged, which the summary says.
    """
    import duckdb
    import pyarrow as pa
    from rich.text import Text

    results, cell = stages.parents[2], f"{stages.parent.name}/{stages.stem}"
    blocks = block_files(results, "lens", stages.parent.name, stages.stem)
    try:
        lens = pa.concat_tables([tables.read("lens", path, [*LENS]) for path in blocks])
        right = tables.read("stages", stages, [*STAGE])
        asked = tables.read("prompts", results / "prompts" / f"{cell}.parquet", [*PROMPT])
    except Problem:
        return []
    with duckdb.connect() as connection:
        connection.register("lens", lens).register("stages", right).register("prompts", asked)
        rows = connection.execute(MEANS).fetchall()
    if not rows:
        return []
    model, task, prompts = rows[0][:3]
    lines = [
        Text(
            f"{model}, {task}: mean reciprocal rank after each layer, {prompts} prompts answered right"
        )
    ]
    for target, colour, means in (
        ("argument", ARGUMENT, [row[3] for row in rows]),
        ("answer", ANSWER, [row[4] for row in rows]),
    ):
        marks = "".join(LEVELS[min(int(mean * len(LEVELS)), len(LEVELS) - 1)] for mean in means)
        peak = f"  {max(means):.2f} at layer {means.index(max(means))}"
        lines.append(Text(f"  {target:<9}").append(marks, colour).append(peak))
    return lines
