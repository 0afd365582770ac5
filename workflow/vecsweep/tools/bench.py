"""What the engine costs beside its peers: all variants in turn, in one run, as ratios.

States and lens are measured against TransformerLens, nnsight and nnterp, each in its own environment
under --peers, against plain torch hooks, and against each token's forward once and the float32
product with the LM head alone (the floor); with five demonstrations against the bare forward of
all tokens; interventions and ablations against a whole forward for each start layer or step. With
all threads, also ours with one. Where there is a GPU, a random Llama 2 7B in bfloat16 there.
All variants must give the same ranks but for rounding, each runs at its best of a few batches,
and the medians of rounds count.

Writes results/bench/*.json, each row when it is measured, and bench.svg and .png. --readme measures nothing: it copies what was
written to docs/measured/bench.json, and puts the table of it into README.md.
"""

import json
import platform
import tempfile
from pathlib import Path
from statistics import median

from vecsweep import Problem
from vecsweep.terminal import at_least

BATCHES = (8, 32, 96)
# Rounding moves a rank among thousands of close logits a little: at most by this share, or 1.
RANK_TOLERANCE = 0.01
# In bfloat16 the states themselves are rounded: a rank moves by a share of the vocabulary.
COARSE_TOLERANCE = 0.05
# The environments of peers under --peers, each from envs/NAME.lock.
ENVIRONMENTS = {"TransformerLens": "peers", "nnsight": "peers", "nnterp": "nnterp"}
DEFAULTS = ["gemma3-270m", "gpt2-medium"]
ROWS = ("states + lens", "states + lens, five-shot", "interventions", "ablations")


def arguments(parser):
    parser.add_argument(
        "--model",
        nargs="+",
        help=f"under --results, or a shape: gpt2-medium, llama2-7b (GPU) [{' '.join(DEFAULTS)}]",
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="of a sweep")
    parser.add_argument("--peers", type=Path, default=Path(".venv-bench"), help="[.venv-bench]")
    parser.add_argument(
        "--pairs", type=at_least(1), default=96, help="prompts of states and lens [96]"
    )
    parser.add_argument(
        "--repeats", type=at_least(1), default=5, help="rounds; the median counts [5]"
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, help="rows to measure; others stay")
    parser.add_argument("--readme", action="store_true", help="write the README's table, no more")


def run(args):
    """Measure the models one after another, write a file for each, and draw them all."""
    from vecsweep.tools import bench_report as report

    folder = args.results / "bench"
    if args.readme:
        report.write_readme(folder)
        return
    import torch

    from vecsweep.tools import bench_variants as variants

    models = args.model or DEFAULTS + ["llama2-7b"] * torch.cuda.is_available()
    every = torch.get_num_threads()
    for name in models:
        with tempfile.TemporaryDirectory() as place:
            if name == "llama2-7b":
                if not torch.cuda.is_available():
                    raise Problem("llama2-7b is measured on a GPU, and there is none")
                subject = variants.shaped(name, Path(place), "cuda")
                measure(args, subject, every)
            else:
                shape = name in variants.SHAPES
                subject = (
                    variants.shaped(name, Path(place))
                    if shape
                    else variants.swept(args.results, name)
                )
                for threads in sorted({1, every}):
                    measure(args, subject, threads)
    report.draw(folder)


def measure(args, subject, threads: int) -> None:
    """Measure a model's rows on `threads` threads, and write them."""
    import torch

    from vecsweep.engine.batches import keep_memory
    from vecsweep.engine.decoding import fast_bfloat16
    from vecsweep.files import provenance, write_json
    from vecsweep.tasks.rows import CAPTURED
    from vecsweep.tools import bench_variants as variants

    keep_memory()  # as the stages do
    engine = subject.engine
    device = engine.device.type
    place = "gpu" if device == "cuda" else f"cpu-{'1' if threads == 1 else 'all'}"
    dtype = str(engine.model.dtype).removeprefix("torch.")
    vocabulary = engine.model.config.vocab_size
    slack = 1 if dtype == "float32" else COARSE_TOLERANCE * vocabulary
    said = {
        "model": subject.name,
        "parameters": sum(p.numel() for p in engine.model.parameters()),
        "layers": len(engine.blocks),
        "vocabulary": vocabulary,
        "dtype": dtype,
        "device": device,
        "processor": processor(),
        "fast_bfloat16": fast_bfloat16(),
        "threads": threads,
        "repeats": args.repeats,
        "pairs": args.pairs,
        "packages": json.loads(provenance()["packages"]),
    } | {key: provenance()[key] for key in ("vecsweep", "git_commit", "host")}
    path = args.results / "bench" / f"{subject.name}-{place}.json"
    # Rows of another code or machine do not stand beside new ones.
    rows = {row["name"]: row for row in kept(path, said)}
    if device == "cpu":
        dtypes = [torch.float32, *[torch.bfloat16] * said["fast_bfloat16"]]
        said["core_gflops"] = [variants.core_speed(kind) for kind in dtypes]
        torch.set_num_threads(threads)
    chosen = [name for name in args.only or ROWS if name == ROWS[0] or whole(subject, threads)]
    print(f"{subject.name}, {dtype}, {place}, {threads} thread(s)", flush=True)

    def row(name, prompts, others: dict, run_ours) -> None:
        """Measure a row and write it down."""
        found = {"vecsweep": (threads, variants.timed(run_ours, engine))}
        if device == "cpu" and threads != 1:
            found["vecsweep, 1 thread"] = (1, found["vecsweep"][1])
        found |= {other: (threads, call) for other, call in others.items()}
        rows[name] = {
            "name": name,
            "prompts": len(prompts),
            "tokens": sum(len(p["token_ids"]) for p in prompts),
            "variants": compare(name, found, len(prompts), args.repeats, slack),
        }
        write_json(said | {"rows": [rows[n] for n in ROWS if n in rows]}, path)

    def against(name, prompts, others: dict, run_ours) -> None:
        if name in chosen:
            timed = {other: variants.timed(run, engine) for other, run in others.items()}
            row(name, prompts, timed, run_ours)

    one = subject.rows(("abstractive",), 1, args.pairs)
    if ROWS[0] in chosen:
        peers = started(args.peers, subject, one, threads) if device == "cpu" else {}
        said["peers"] = {name: peer.versions for name, peer in peers.items()}
        try:
            others = peers | {
                "plain hooks": variants.timed(variants.plain(subject, one), engine),
                "floor": variants.timed(variants.floor(subject, one), engine),
            }
            row(ROWS[0], one, others, variants.ours(subject, one))
        finally:
            for peer in peers.values():
                peer.close()
    if not whole(subject, threads):
        return
    five = subject.rows(("abstractive",), 5, args.pairs)
    novel = subject.rows(("novel",), 1, args.pairs)[: max(1, args.pairs // 8)]
    both = subject.rows(CAPTURED, 1, max(1, args.pairs // 4))
    vector = variants.o_vector(engine, one[0])
    bare = {"bare forward": variants.bare(subject, five)}
    against("states + lens, five-shot", five, bare, variants.ours(subject, five))
    full = {"full forwards": variants.full_resumed(subject, novel, vector)}
    against("interventions", novel, full, variants.resumed(subject, novel, vector))
    full = {"full forwards": variants.full_ablated(subject, both)}
    against("ablations", both, full, variants.ablated(subject, both))


def whole(subject, threads: int) -> bool:
    """Whether all rows are measured: on one thread, of a model with a tokenizer for its prompts."""
    from vecsweep.tools import bench_variants as variants

    return threads == 1 and subject.name not in variants.SHAPES


def kept(path: Path, said: dict) -> list[dict]:
    """The rows that `path` has of the same code, machine, prompts and rounds; `said` takes its peers."""
    from vecsweep.files import read_json

    if not path.is_file():
        return []
    old = read_json(path)
    if any(old.get(key) != value for key, value in said.items()):
        return []
    said["peers"] = old.get("peers", {})
    return old["rows"]


def processor() -> str:
    """The name of this machine's processor, where Linux says it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def started(folder: Path, subject, rows: list[dict], threads: int) -> dict:
    """The peers whose environments are there, by name, each with its model loaded."""
    from vecsweep.tools.bench_variants import Peer

    peers = {}
    for name, environment in ENVIRONMENTS.items():
        python = folder.absolute() / environment / "bin" / "python"
        if python.exists():
            peers[name] = Peer(name, python, subject, rows, threads)
        else:
            print(f"{name} is left out: there is no {python}; `make bench` installs it")
    return peers


def compare(name: str, variants: dict, prompts: int, repeats: int, slack: float) -> list[dict]:
    """What each variant took, ours first: seconds of each round, their median, and over ours in the
    same round the median (`ratio`) and the range (`low`, `high`).

    `variants` are name -> (threads, what is called with batch and threads, and gives seconds
    and ranks). Each runs at the fastest of BATCHES, tried once before the rounds.
    """
    found: list[dict] = []
    expected: list[int] = []
    batches = sorted({min(batch, prompts) for batch in BATCHES})
    for variant, (threads, call) in variants.items():
        call(batches[-1], threads)  # what a first run sets up is no part of it
        tried, equal = {}, None
        for batch in batches:
            tried[batch], ranks = call(batch, threads)
            expected = expected or ranks
            if ranks:
                equal = check_ranks(f"{name}, {variant}", ranks, expected, slack)
        batch = min(tried, key=tried.__getitem__)
        found.append({"name": variant, "threads": threads, "batch": batch, "equal": equal})
        found[-1]["seconds"] = []
    for _ in range(repeats):
        for variant, (threads, call) in zip(found, variants.values()):
            variant["seconds"].append(call(variant["batch"], threads)[0])
    ours = found[0]["seconds"]
    for variant in found:
        ratios = [theirs / own for theirs, own in zip(variant["seconds"], ours)]
        variant["median"] = median(variant["seconds"])
        # Of both in one round: what slows the machine for a while slows both.
        variant |= {"ratio": median(ratios), "low": min(ratios), "high": max(ratios)}
        print(
            f"  {name:26} {variant['name']:22} {variant['median']:8.2f} s "
            f"{variant['ratio']:6.2f} ({variant['low']:.2f} to {variant['high']:.2f})"
            f"  batch {variant['batch']}",
            flush=True,
        )
    return found


def check_ranks(name: str, found: list[int], expected: list[int], slack: float = 1) -> float:
    """The share of equal ranks; Problem unless the others differ by no more than rounding does."""
    if len(found) != len(expected):
        raise Problem(f"{name}: {len(found)} ranks, but ours are {len(expected)}")
    for place, (rank, own) in enumerate(zip(found, expected)):
        if abs(rank - own) > max(slack, RANK_TOLERANCE * own):
            raise Problem(f"{name}: rank {rank} at place {place}, but {own} by ours")
    return sum(rank == own for rank, own in zip(found, expected)) / len(found)
