"""What a model of the config needs, from its sizes alone: no weights.

Sizes come from a local folder's or a cached snapshot's config.json, or from
`engine/architectures.yaml`.
"""

import math
import os
from pathlib import Path

from vecsweep import Problem, config, nearest, tasks
from vecsweep.engine import folders
from vecsweep.engine.families import family_of, module_at, size_in
from vecsweep.files import PACKAGE, packaged
from vecsweep.layout import STAGES, Stage
from vecsweep.terminal import at_least

ARCHITECTURES = PACKAGE / "engine" / "architectures.yaml"
TASKS = PACKAGE / "tasks"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30
HEADROOM = 0.9  # of a device's memory; the rest is its context and fragments
PROCESS_MB = 3000  # Python with torch, transformers and DeepSpeed
PROMPT_TOKENS = 32  # a one-shot prompt; the paper's take 20 to 50
TO_DEVICE = 20e9  # bytes a second from host memory to a device, for weights that stay there
FLOPS = 80e12  # per device and second, at small batches: a quarter of what an A100 can do
CORE_FLOPS = 50e9  # per CPU core and second in float32: half of what AVX-512 does
SITES = 3  # resid_mid, ffn_out, resid_post
MOST_NODES = 4
LOADING = 0.2  # of a job that takes several tasks, at most
START = 15  # seconds: Slurm, Snakemake, Python with torch
TASK_PROMPTS = 500
LONG_PASSES = 100  # of a prompt, at least, in a long stage; in others one
TASK_SECONDS = 5, 60  # a task takes at least: of a short stage, of a long one


def arguments(parser):
    parser.add_argument("model", help="a name under `models` in the config")
    parser.add_argument("--configfile", type=Path, default=Path("config.yaml"))
    parser.add_argument(
        "--gpu-memory", type=at_least(1, float), default=80, help="GB of a device [80]"
    )
    parser.add_argument("--gpus-per-node", type=at_least(1), default=8, help="[8]")
    parser.add_argument(
        "--disk-speed", type=at_least(0.001, float), default=2, help="GB/s of all readers [2]"
    )


def run(args):
    """Print the plan of a model."""
    grid = config.load(args.configfile)
    if args.model not in grid["models"]:
        names = ", ".join(grid["models"])
        raise Problem(
            f"{args.configfile} has no model '{args.model}'; it has {names}"
            f"{nearest(args.model, grid['models'])}; name one of them"
        )
    settings = grid["models"][args.model]
    prompts = {name: prompt_count(grid, name) for name in grid["tasks"]}
    facts = Facts(args.model, settings)
    print("\n".join(report(args, settings, facts, prompts)))


def prompt_count(grid: dict, task: str) -> int:
    """Prompts of one task whose states are captured: abstractive and extractive, at most."""
    settings = grid["tasks"][task]
    loaded = tasks.load(settings.get("file", TASKS / f"{task}.yaml"))
    rows = len(loaded.rows)
    most = settings.get("max_prompts", grid["prompts"]["max_prompts"])
    return (2 if loaded.extractive else 1) * min(rows, most or rows)


def architecture(name: str, settings: dict) -> dict | None:
    """The content of a model's config.json, from what is at hand; None if nothing is.

    It may hold `parameters` too, their number.
    """
    if folder := folder_of(settings):
        content = folders.json_object(f"model '{name}'", folder / "config.json")
        return content | {"parameters": parameters_in(folder)}
    known = packaged(ARCHITECTURES)
    return known.get(settings.get("id", name))


def folder_of(settings: dict) -> Path | None:
    """The folder with a model's config.json, if it is on this machine."""
    if settings["source"] == "local":
        folder = Path(settings["path"]).expanduser()
    elif settings["source"] == "hub":
        # The hub's own package takes a second to import; its cache is laid out like this.
        home = os.environ.get("HF_HOME", "~/.cache/huggingface")
        try:
            cache = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
        except RuntimeError:  # a user without a home
            return None
        snapshots = cache / f"models--{settings['id'].replace('/', '--')}" / "snapshots"
        folder = snapshots / settings["revision"]
    else:
        return None
    return folder if (folder / "config.json").is_file() else None


def parameters_in(folder: Path) -> int | None:
    """The number of parameters in a folder's safetensors files, by their headers; None without."""
    shapes = folders.tensor_shapes("plan", folder)
    return sum(math.prod(shape) for shape in shapes.values()) or None


class Facts:
    """What the plan is made from: the model on the meta device, and its sizes.

    `parameters` counts tied ones once; `whole` is their bytes in the config's dtype.
    """

    def __init__(self, name: str, settings: dict):
        import torch
        import transformers

        content = architecture(name, settings)
        if content is None:
            raise Problem(
                f"the sizes of '{name}' are not known here: add them to {ARCHITECTURES}, or run "
                "`snakemake` for its model.json first"
            )
        content = {k: v for k, v in content.items() if k != "parameters"}
        try:
            self.config = transformers.AutoConfig.for_model(**content)
            with torch.device("meta"):
                self.model = transformers.AutoModelForCausalLM.from_config(self.config)
        except Exception as error:  # a bad value raises transformers' own
            reason = " ".join(str(error).split())
            raise Problem(f"model '{name}': bad sizes: {reason}") from error
        self.family = family_of(self.model)
        self.blocks = module_at(self.model, self.family.blocks)
        self.size = BYTES[settings["dtype"]]
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.whole = self.parameters * self.size
        self.block = sum(p.numel() for p in self.blocks[0].parameters()) * self.size
        self.largest = max(p.numel() for p in self.model.parameters()) * self.size

    def held(self, sharding: str, shards: int) -> int:
        """Bytes of parameters that each process holds."""
        if sharding == "single":
            return self.whole
        if sharding == "zero":
            # Each tensor is cut into equal parts, the last one padded.
            parts = (math.ceil(p.numel() / shards) for p in self.model.parameters())
            return sum(parts) * self.size
        return sum(self._tensor_parallel(shards)) * self.size

    def on_device(self, sharding: str, shards: int, offload: bool) -> int:
        """Bytes of parameters that each device needs; with offload one tensor and a part of it."""
        if not offload:
            return self.held(sharding, shards)
        return math.ceil(self.largest * (1 + 1 / shards))

    def _tensor_parallel(self, shards):
        """Numbers that a process holds of each parameter."""
        import torch

        embedding = self.model.get_input_embeddings().weight
        split = set()  # ids of parameters
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear):
                split.add(id(module.weight))
                if not name.endswith((*self.family.summed, self.family.head)):
                    split.add(id(module.bias))
        for parameter in self.model.parameters():
            count, cut = parameter.numel(), id(parameter) in split
            if parameter is embedding:  # whole in every process, and cut once more as a tied head
                yield count + cut * count / shards
            else:
                yield count / shards if cut else count

    def capture(self) -> int:
        """Bytes of the states that one prompt leaves: sites x layers x d_model, and the first."""
        return (SITES * len(self.blocks) + 1) * self.config.hidden_size * self.size

    def activations(self, tokens: int, shards: int) -> int:
        """Bytes of a batch of so many tokens in a process.

        That is its keys and values, copied from those of as many tokens, the FFN's inner layer and
        copies of the stream.
        """
        from vecsweep.engine.batches import CACHED  # with torch, which Snakemake does without

        d = self.config.hidden_size
        width = getattr(self.config, "head_dim", None) or d // self.config.num_attention_heads
        heads = getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads
        cache = 2 * len(self.blocks) * heads * width / shards
        inner = 4 * d / shards
        return math.ceil(tokens * ((1 + CACHED) * cache + 2 * inner + 8 * d) * self.size)


def shard_counts(heads: int, gpus_per_node: int) -> list[int]:
    """Shard counts worth a look: divisors of a node; over several, what divides nodes or heads."""
    within = [n for n in range(1, gpus_per_node + 1) if gpus_per_node % n == 0]
    most = MOST_NODES * gpus_per_node
    over = [
        n for n in range(gpus_per_node + 1, most + 1)
        if n % math.ceil(n / gpus_per_node) == 0 and (heads % n == 0 or n % gpus_per_node == 0)
    ]  # fmt: skip
    return within + over


def engine_for(settings: dict, facts: Facts, shards: int) -> str:
    """How a job would run the model: single, tensor or zero."""
    from vecsweep.engine import sharded

    heads, offload = facts.config.num_attention_heads, settings.get("offload", False)
    wanted = settings["engine"] if shards > 1 or offload else "auto"
    return sharded.choose(wanted, shards, facts.config.model_type, heads, offload)


def suggested(settings: dict, facts: Facts, gpu_memory: float, gpus_per_node: int) -> int | None:
    """The smallest shard count with which weights and a batch fit a device; None if none does."""
    for shards in shard_counts(facts.config.num_attention_heads, gpus_per_node):
        try:
            sharding = engine_for(settings, facts, shards)
        except Problem:
            continue
        batch = facts.activations(settings["batch_tokens"], shards if sharding == "tensor" else 1)
        offload = settings.get("offload", False)
        needed = facts.on_device(sharding, shards, offload) + batch
        if needed <= HEADROOM * gpu_memory * 1e9:
            return shards
    return None


def none_fits(settings: dict, facts: Facts, gpu_memory: float, gpus_per_node: int) -> str:
    """What to say where no shard count fits, and which smaller batch would."""
    said = f"No listed shard count fits devices of {gpu_memory:g} GB"
    tokens = settings["batch_tokens"]
    while tokens := tokens // 2:
        smaller = settings | {"batch_tokens": tokens}
        if shards := suggested(smaller, facts, gpu_memory, gpus_per_node):
            return f"{said}; with batch_tokens: {tokens} shards: {shards} does."
    return f"{said}."


def host_bytes(held: float, largest: float) -> float:
    """Memory of a process while it loads: its part, a fifth more, and one whole tensor."""
    return 1.2 * held + largest


def report(args, settings: dict, facts: Facts, prompts: dict[str, int]) -> list[str]:
    """The lines that `run` prints."""
    config, heads = facts.config, facts.config.num_attention_heads
    lines = [
        f"{args.model}: {config.model_type}, {len(facts.blocks)} layers, d_model "
        f"{config.hidden_size}, {heads} heads, vocabulary {config.vocab_size}",
        f"parameters          {facts.parameters:,}",
        f"in {settings['dtype']:<16} {facts.whole / 1e9:.1f} GB = {facts.whole / GIB:.1f} GiB; "
        f"a block {facts.block / GIB:.2f} GiB, the largest tensor {facts.largest / GIB:.2f} GiB",
        "",
        "shards  nodes  heads each  tensor GiB  ZeRO GiB  batch GiB  host GiB  fits",
    ]
    choice = suggested(settings, facts, args.gpu_memory, args.gpus_per_node)
    offload = settings.get("offload", False)
    for shards in shard_counts(heads, args.gpus_per_node):
        tensor = bool(facts.family.summed) and heads % shards == 0 and not offload
        zero = facts.held("zero", shards)
        held = facts.held("tensor", shards) if tensor and shards > 1 else zero
        batch = facts.activations(settings["batch_tokens"], shards if tensor else 1)
        each = heads // shards if heads % shards == 0 else "-"
        shown = f"{held / GIB:.1f}" if tensor and shards > 1 else "-"
        on_device = facts.on_device("zero", shards, True) if offload else held
        fits = on_device + batch <= HEADROOM * args.gpu_memory * 1e9
        lines.append(
            f"{shards:>6}  {math.ceil(shards / args.gpus_per_node):>5}  {each:>10}  {shown:>10}  "
            f"{zero / GIB:>8.1f}  {batch / GIB:>9.1f}  "
            f"{host_bytes(held, facts.largest) / GIB:>8.1f}  {'yes' if fits else 'no'}"
            f"{'  <- suggested' if shards == choice else ''}"
            f"{'  (config)' if shards == settings['shards'] else ''}"
        )
    each, total = facts.capture(), sum(prompts.values())
    used = choice or settings["shards"]
    loading = facts.whole / (args.disk_speed * 1e9)
    computing = compute_seconds(facts.parameters, total, used)
    if offload:  # all weights go to the devices for every batch
        batches = math.ceil(total * PROMPT_TOKENS / settings["batch_tokens"])
        computing += batches * facts.whole / (used * TO_DEVICE)
    size = asked = settings.get("tasks_per_job", "auto")
    if asked == "auto":
        size = together(facts.whole, settings | {"shards": used}, STAGES["states"], args.disk_speed)
        asked = f"auto, {size} on a cluster"
    share = loading / (loading + computing * min(1, size / len(prompts)))
    lines += [
        "",
        f"states              {each / 1e6:.1f} MB a prompt, {each * total / 1e9:.2f} GB for "
        f"{total} prompts of {len(prompts)} tasks",
        f"loading             {loading:.0f} s at {args.disk_speed:g} GB/s",
        f"computing           {computing:.0f} s for the states of all tasks on {used} devices",
        f"loading's share     {100 * share:.0f} % of a states job with tasks_per_job: {asked}",
    ]
    if offload:
        device = facts.on_device("zero", used, True)
        lines.append(
            f"offload             weights in host memory, {facts.held('zero', used) / GIB:.1f} GiB a "
            f"process; at most {device / GIB:.1f} GiB of them on a device at a time"
        )
    if choice is None:
        lines.append(none_fits(settings, facts, args.gpu_memory, args.gpus_per_node))
    else:
        nodes = math.ceil(choice / args.gpus_per_node)
        lines.append(
            f"suggested           shards: {choice}, {nodes} node{'s' if nodes > 1 else ''} of "
            f"{args.gpus_per_node} devices, engine {engine_for(settings, facts, choice)}"
        )
    return lines


def compute_seconds(parameters: float, prompts: int, shards: int, cores: int = 0) -> float:
    """Seconds of forward passes: 2 operations a parameter and token, nothing shared.

    By GPUs, or by so many CPU cores a shard.
    """
    rate = cores * CORE_FLOPS if cores else FLOPS
    return 2 * parameters * PROMPT_TOKENS * prompts / (rate * shards)


def prompts_of(stage: Stage) -> int:
    """How many forward passes of a prompt a task takes in a stage: a rough number."""
    return TASK_PROMPTS * (LONG_PASSES if stage.long else 1)


def together(
    weights: float, settings: dict, stage: Stage, disk_speed: float = 2, cores: int = 0
) -> int:
    """Tasks of a job on a cluster with `tasks_per_job: auto`: so many that it loads for about a fifth.

    `weights` in bytes, `disk_speed` in GB/s. A start counts as loading. A rough number: a task has
    500 prompts, and a long stage runs each a hundred times.
    """
    loading, computing = START, TASK_SECONDS[stage.long]
    if stage.runs_model:
        loading += weights / (disk_speed * 1e9)
        parameters = weights / BYTES[settings["dtype"]]
        passes, shards = prompts_of(stage), settings["shards"]
        computing = max(computing, compute_seconds(parameters, passes, shards, cores))
    return max(1, round(loading * (1 / LOADING - 1) / computing))


def node_memory(name: str, settings: dict, gpus_per_node: int = 8) -> int | None:
    """MB that each node of a job needs that runs a model; None if its sizes are not known here.

    `settings` is the model's part of the checked config. Plain arithmetic from the number of
    parameters, at most a file read: no torch, so quick enough for Snakemake's parse.
    """
    content = architecture(name, settings)
    width = content and size_in(content, "hidden_size")
    if not content or not width or not content.get("parameters"):
        return None
    shards, size, parameters = settings["shards"], BYTES[settings["dtype"]], content["parameters"]
    nodes = math.ceil(shards / gpus_per_node)
    embedding = content["vocab_size"] * width
    held = parameters
    if shards > 1:  # as by tensor parallel, the larger one: the embedding whole, its head split
        head = embedding if content.get("tie_word_embeddings", True) else 0
        held = embedding + (parameters - embedding + head) / shards
    host = host_bytes(held * size, embedding * size)
    return math.ceil(shards / nodes * (PROCESS_MB + host / 2**20))
