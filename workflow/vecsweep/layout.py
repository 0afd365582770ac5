"""The table of stages: what each one is, once.

Rules, groups, resources, status, prune, plan, the summary and the command line read it. A new stage is a
row here and a module `stages/NAME.py` with `run(args)`; its rule, its command and the place of its
results come from the row.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from vecsweep.sweep import Sweep

# How a model is run. What comes out is the same, so that no finished job runs again for them; table
# `runs` says what they were. (preshard's slices are cut for them: its row names some.)
EXECUTION = ("batch_tokens", "shards", "engine", "offload", "preshard", "tasks_per_job")


class Cell(NamedTuple):
    """What one result belongs to: a model, one of its tasks, a block of layers (`0-11`)."""

    model: str = ""
    task: str = ""
    layers: str = ""


@dataclass(frozen=True)
class Input:
    """Results of another stage that a stage reads, for the same cell as far as that stage has it.

    A stage that is not cut into layer blocks reads all blocks of one that is. `tasks` and `models`
    give others than the cell's own; `optional` is a model's config key without which there is no
    such input, and which is no reason to run again.
    """

    stage: str
    output: str = "output"
    tasks: Callable | None = None
    models: Callable | None = None
    optional: str | None = None


@dataclass(frozen=True)
class Stage:
    """A stage of the sweep; its results lie in `results/NAME/`, its settings in `results/settings/`.

    `inputs` and `outputs` map options of its command to files, outputs as patterns with the parts
    of a `Cell`; an output that ends in / is a folder. `keys` are the config keys that change the
    result (`models.KEY` is the cell's model's). `tasks` is the config key that lists its tasks.
    `memory` (MB) and `minutes` of a first attempt: (base, times the weights in GB, at most). Bases
    hold Python with torch and Snakemake's own 250 MB; the rest is rounded up from benchmark files.
    """

    name: str
    makes: str
    outputs: dict[str, str]
    inputs: dict[str, Input] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    tasks: str = "tasks"
    runs_model: bool = False
    reads_task: bool = False  # its file, and the rows that it names
    # Each task of a group adds its minutes, and what is done is kept: others take seconds a task.
    long: bool = False
    memory: tuple[int, int, int] = (2000, 0, 2000)
    minutes: tuple[int, int, int] = (20, 0, 20)
    environment: str = "engine"  # envs/NAME.yaml
    version: int = 1  # a changed meaning bumps it, and the stage runs again

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of a cell that tell its results apart: of model, task, layers."""
        pattern = "".join(self.outputs.values())
        return tuple(part for part in Cell._fields if f"{{{part}}}" in pattern)

    def paths(self, cell: Cell, results="results") -> dict[str, str]:
        """Option -> path of what a job writes."""
        return {
            option: os.path.normpath(f"{results}/{self.name}/{pattern.format(**cell._asdict())}")
            for option, pattern in self.outputs.items()
        }


def rivals(sweep: "Sweep", task: str) -> list[str]:
    """The task whose o-vector is a control for another task's: none if the grid has no such."""
    listed = sweep.config["interventions"]["rivals"]
    return [name for name in listed if name in sweep.tasks and name != task][:1]


def other_domains(sweep: "Sweep", task: str) -> list[str]:
    """The task of the grid that is out-of-domain for another one: none or one."""
    return [name for name in sweep.tasks if name == sweep.loaded[task].out_of_domain.get("task")]


def tuned_tasks(sweep: "Sweep", task: str) -> list[str]:
    """The tasks whose prompts translators are fitted on and read, all together."""
    return sweep.listed("tuned.tasks")


def other_models(sweep: "Sweep", model: str) -> list[str]:
    """The models that must keep a model's prompts too: all others with `common`, else none."""
    return [name for name in sweep.models if name != model and sweep.config["prompts"]["common"]]


def shown_heads(sweep: "Sweep", task: str) -> list[str]:
    """The task itself, if function vectors are made of it."""
    return [task] if task in sweep.listed("contenders.function_vectors") else []


MODEL = {
    "model": Input("models", "description"),
    "readout": Input("models", "readout"),
}
ENGINE = MODEL | {"slices": Input("preshard", optional="preshard")}
PROMPTS = {"prompts": Input("prompts")}
VECTORS = {
    "vectors": Input("ovectors", "vectors"),
    "rival": Input("ovectors", "vectors", tasks=rivals),
}
SHOWN = {
    "tokenizer": Input("models", "tokenizer"),
    "elsewhere": Input("prompts", tasks=other_domains),
}
BLOCK = "{model}/{task}/{layers}.parquet"
TABLE = "{model}/{task}.parquet"
TENSORS = "{model}/{task}.safetensors"
MODEL_RUNS: dict[str, Any] = {"runs_model": True, "memory": (3000, 1500, 500_000)}
LONG: dict[str, Any] = MODEL_RUNS | {"long": True, "minutes": (120, 20, 1440)}
SEARCH = ("start_layers", "extents", "modes", "scales", "position", "end_depth", "dev_prompts")
SEARCH_KEYS = (*(f"interventions.{key}" for key in (*SEARCH, "rivals")), "prompts.seed")

ROWS = (
    Stage(
        "models",
        "weights, `model.json`, the readout (final norm and LM head), the vocabulary, the tokenizer",
        outputs={
            "description": "{model}/model.json",
            "readout": "{model}/readout.safetensors",
            "vocabulary": "{model}/vocabulary.parquet",
            "tokenizer": "{model}/tokenizer.json",
        },
        keys=tuple(
            f"models.{key}"
            for key in (
                "source",
                "files",
                "path",
                "id",
                "revision",
                "sha256",
                "layers",
                "dtype",
                "quantized",
                "content",
            )
        ),
        memory=(3000, 2500, 64_000),  # GGUF files are unpacked in memory, others only pointed to
        minutes=(30, 5, 720),
    ),
    Stage(
        "preshard",
        "the slices of a sharded model that each process starts from, where `preshard: true` asks",
        inputs={"model": MODEL["model"]},
        outputs={"output": "{model}/"},
        keys=("models.shards", "models.engine", "models.offload"),
        minutes=(30, 5, 720),
        **MODEL_RUNS,
    ),
    Stage(
        "prompts",
        "abstractive, extractive and novel prompts as token ids, with what was dropped and why",
        inputs={
            "model": MODEL["model"],
            "tokenizer": Input("models", "tokenizer"),
            "others": Input("models", "description", models=other_models),
            "tokenizers": Input("models", "tokenizer", models=other_models),
        },
        outputs={"output": TABLE},
        keys=(
            "tasks.file",
            "tasks.content",
            "models.chat",
            "prompts.demonstrations",
            "prompts.seed",
            "prompts.max_prompts",
            "prompts.common",
        ),
        reads_task=True,
        version=3,
    ),
    Stage(
        "states",
        "hidden states of every layer at the last token: mid-block, FFN update, after the block",
        inputs=ENGINE | PROMPTS,
        outputs={"output": TENSORS},
        minutes=(30, 5, 720),
        version=2,  # resid_pre.00 of sequential blocks too
        **MODEL_RUNS,
    ),
    Stage(
        "lens",
        "early decoding: rank and probability of argument and answer, top tokens",
        inputs=MODEL | PROMPTS | {"states": Input("states")},
        outputs={"output": BLOCK},
        memory=(2000, 1000, 32_000),  # the readout in float32
        minutes=(30, 2, 240),
        version=2,
    ),
    Stage(
        "stages",
        "argument formation, function application and its sublayer, saturation, for each prompt",
        inputs={"lens": Input("lens")},
        outputs={"output": TABLE},
        environment="tables",
        version=2,
    ),
    Stage(
        "ovectors",
        "FFN updates that turned an argument into its answer, cut from the states",
        inputs={"readout": MODEL["readout"]}
        | PROMPTS
        | {"states": Input("states"), "stages": Input("stages")},
        outputs={"vectors": TENSORS, "table": TABLE},
        keys=("ovectors.donors", "ovectors.source_layers", "ovectors.per_layer", "prompts.seed"),
        tasks="interventions.tasks",
        version=4,
    ),
    Stage(
        "interventions",
        "the search on dev: every method's vectors over the same grid, in novel contexts",
        inputs=ENGINE | PROMPTS | VECTORS,
        outputs={"output": BLOCK},
        keys=SEARCH_KEYS,
        tasks="interventions.tasks",
        version=3,
        **LONG,
    ),
    Stage(
        "selection",
        "every method at its own best setting on test, beside other donors and the o-vector's parts",
        inputs=ENGINE
        | PROMPTS
        | VECTORS
        | {
            "search": Input("interventions"),
            "elsewhere": Input("prompts", tasks=other_domains),
        },
        outputs={"output": TABLE},
        keys=(*SEARCH_KEYS, "interventions.test_prompts", "tasks.elsewhere"),
        tasks="interventions.tasks",
        version=3,
        **LONG,
    ),
    Stage(
        "heads",
        "what each attention head adds to answers by demonstrations, and function vectors of the best",
        inputs=ENGINE | PROMPTS | SHOWN,
        outputs={"vectors": TENSORS, "table": TABLE},
        keys=("tasks.file", "tasks.elsewhere", "prompts.seed"),
        tasks="contenders.function_vectors",
        reads_task=True,
        version=2,
        **LONG,
    ),
    Stage(
        "contenders",
        "other papers' methods, searched on dev and reported on test as the o-vector is",
        inputs=ENGINE
        | PROMPTS
        | {"vectors": VECTORS["vectors"]}
        | SHOWN
        | {"heads": Input("heads", "vectors", tasks=shown_heads)},
        outputs={"output": TABLE},
        keys=(
            # They stand at the last token, whatever the position of the others.
            *(f"interventions.{k}" for k in (*SEARCH, "test_prompts") if k != "position"),
            *("contenders.task_vectors", "contenders.function_vectors"),
            *("tasks.file", "tasks.elsewhere", "prompts.seed"),
        ),
        tasks="contenders",
        reads_task=True,
        version=2,
        **LONG,
    ),
    Stage(
        "ablations",
        "accuracy with FFNs (or attention) removed, abstractive beside extractive",
        inputs=ENGINE | PROMPTS,
        outputs={"output": TABLE},
        keys=("ablations.twins", "ablations.max_prompts", "prompts.seed"),
        tasks="ablations.tasks",
        version=2,
        **LONG,
    ),
    Stage(
        "swaps",
        "answers with a layer's update (or state) exchanged between prompts: function or fact",
        inputs=ENGINE | PROMPTS | {"stages": Input("stages")},
        outputs={"output": TABLE},
        keys=("swaps.prompts", "prompts.seed"),
        tasks="swaps.tasks",
        **LONG,
    ),
    Stage(
        "patching",
        "how much of another prompt's answer one layer's state or update brings along, by token",
        inputs=ENGINE
        | PROMPTS
        | {"tokenizer": Input("models", "tokenizer"), "stages": Input("stages")},
        outputs={"output": TABLE},
        keys=("patching.prompts", "prompts.seed"),
        tasks="patching.tasks",
        version=2,
        **LONG,
    ),
    Stage(
        "relational",
        "the relation as one linear map of the argument's state: faithful, causal, beside simpler maps",
        inputs=ENGINE
        | PROMPTS
        | {"tokenizer": Input("models", "tokenizer"), "stages": Input("stages")},
        outputs={"output": TABLE},
        keys=("relational.train", "relational.layers", "prompts.seed"),
        tasks="relational.tasks",
        version=2,
        **LONG,
    ),
    Stage(
        "attribution",
        "what each sublayer adds to the answer's logit over the argument's",
        inputs=MODEL | PROMPTS | {"states": Input("states")},
        outputs={"output": TABLE},
        memory=(2000, 1000, 32_000),  # the readout in float32
        minutes=(30, 2, 240),
    ),
    Stage(
        "tuned",
        "the tuned lens: translators fitted on train prompts, argument and answer read by them",
        inputs=MODEL
        | {name: Input(name, tasks=tuned_tasks) for name in ("prompts", "states", "lens")},
        outputs={"output": "{model}/{layers}.parquet"},
        keys=("tuned.tasks", "prompts.seed"),
        tasks="tuned.tasks",
        version=2,
        memory=(3000, 1000, 32_000),  # the readout in float32
        minutes=(60, 4, 480),
    ),
)
SUMMARY = Stage(
    "summary",
    "`results/summary.duckdb` and `results/tables/*.csv`",
    outputs={"database": "../summary.duckdb", "tables": "../tables/"},
    inputs={
        "models": Input("models", "description"),
        "vocabularies": Input("models", "vocabulary"),
        "prompts": Input("prompts"),
        "lens": Input("lens"),
        "stages": Input("stages"),
        "ovectors": Input("ovectors", "table"),
        "interventions": Input("interventions"),
        "selection": Input("selection"),
        "contenders": Input("contenders"),
        "heads": Input("heads", "table"),
        "ablations": Input("ablations"),
        "swaps": Input("swaps"),
        "patching": Input("patching"),
        "relational": Input("relational"),
        "attribution": Input("attribution"),
        "tuned": Input("tuned"),
    },
    # The grid itself is a setting too: see `Sweep.settings`.
    keys=("summary.resamples", "lens.top_k"),
    memory=(8000, 0, 8000),
    minutes=(120, 0, 120),
    environment="tables",
    version=6,
)
FIGURES = Stage(
    "figures",
    "`results/figures/*.svg` and `.png`",
    outputs={"svg": "{name}.svg", "png": "{name}.png"},
    environment="tables",
)
PAGE = Stage(
    "page",
    "`results/index.html`: the findings, every prompt by layer, figures and tables",
    outputs={"output": "../index.html"},
    inputs={"database": Input("summary", "database")},
    environment="tables",
)
STAGES = {stage.name: stage for stage in (*ROWS, SUMMARY, FIGURES, PAGE)}


def waiting(stage: Stage) -> int:
    """How many stages wait for this one in turn, in the longest row of them."""
    readers = [
        other
        for other in STAGES.values()
        if any(what.stage == stage.name for what in other.inputs.values())
    ]
    return 1 + max(map(waiting, readers)) if readers else 0


# What most stages wait for goes first, of equals what takes longer: at the end of a sweep its other
# cores would wait for the one that is late.
PRIORITIES = {stage.name: 2 * waiting(stage) + stage.long for stage in ROWS}
# Behind a run's first look: on one machine the sweep's first task goes through them ahead of all.
FIRST_LOOK = ("prompts", "states", "lens", "stages")
# Stages whose results no other one reads.
ENDS = [
    stage
    for stage in ROWS
    if not any(
        stage.name == what.stage for other in STAGES.values() for what in other.inputs.values()
    )
]
