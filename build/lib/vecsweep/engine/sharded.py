"""Models that are spread over several devices by DeepSpeed: tensor parallel or ZeRO-3.

Every rank runs the same stage on the same prompts; rank 0 decodes and writes. All ranks hold the
full activations after each sublayer, so that hooks and edits work as in a single process.
"""

import ctypes
import os
import sys
from pathlib import Path

import torch

from vecsweep import Problem
from vecsweep.engine import slices

# Families whose linear layers DeepSpeed's AutoTP can split; GPT-2's Conv1D it cannot.
TENSOR_PARALLEL = (
    "gptj",
    "gpt_neox",
    "bloom",
    "opt",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma3_text",
)


def choose(engine: str, shards: int, family: str, heads: int, offload: bool = False) -> str:
    """single, tensor or zero, for a config's `engine`, `shards` and the model's family.

    auto: single for one shard; tensor where AutoTP supports the family and the shards divide the
    attention heads; zero otherwise, and always with `offload`.
    """
    if offload:
        if engine in ("single", "tensor"):
            raise Problem(f"engine: {engine} cannot offload; write engine: zero or auto")
        return "zero"
    if shards == 1:
        if engine in ("tensor", "zero"):
            raise Problem(f"engine: {engine} needs shards: 2 or more")
        return "single"
    if engine == "single":
        raise Problem(
            f"engine: single runs on one device, but shards: {shards}; write engine: auto"
        )
    if engine == "tensor":
        if family not in TENSOR_PARALLEL:
            raise Problem(
                f"engine: tensor cannot split the family '{family}'; write engine: zero or auto"
            )
        if heads % shards:
            fits = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
            raise Problem(
                f"shards: {shards} does not divide the model's {heads} attention heads; "
                f"choose from {fits}, or engine: zero"
            )
        return "tensor"
    if engine == "auto" and family in TENSOR_PARALLEL and heads % shards == 0:
        return "tensor"
    return "zero"


def rank() -> int:
    """This process's rank; 0 in a single process."""
    return int(os.environ.get("RANK", 0))


def start() -> None:
    """Join the job's process group; RANK, WORLD_SIZE and MASTER_ADDR are in the environment."""
    import deepspeed
    from deepspeed.runtime.zero import partition_parameters

    if not torch.cuda.is_available():
        # Its shared-memory all-reduce takes minutes to compile, crashes unless LOCAL_SIZE is
        # WORLD_SIZE, and leaks in /dev/shm; gloo does as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        partition_parameters._dist_allgather_fn = _Gathered
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    deepspeed.init_distributed(verbose=False)


class _Gathered:
    """The ranks' parts of a tensor on their way into `whole`; `wait()` for them.

    Stands in for DeepSpeed's all-gather on CPUs, since gloo's makes a second whole tensor.
    """

    def __init__(self, part, whole, group=None):
        pieces = list(enumerate(whole.chunk(torch.distributed.get_world_size(group))))
        pieces[torch.distributed.get_rank(group)][1].copy_(part)
        self._sent = [
            torch.distributed.broadcast(piece, group_src=source, group=group, async_op=True)
            for source, piece in pieces
        ]

    def wait(self):
        for sent in self._sent:
            sent.wait()


def load_tensor(config, folder: Path, dtype: torch.dtype, ready=None):
    """The causal LM of a folder, split by AutoTP over all ranks.

    The skeleton has no memory; each rank then reads just its slices from the files, in the
    files' own dtype, or all of its own file `ready`. Problem unless files and model fit each other.
    """
    import deepspeed
    import transformers
    from accelerate import init_empty_weights

    world = torch.distributed.get_world_size()
    files = None if ready else _fitting(config, folder)
    with init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    whole = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    # init_inference replaces modules and loses their buffers.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model = deepspeed.init_inference(
        model,
        tensor_parallel={"tp_size": world, "tp_grain_size": 1},
        dtype=dtype,
        replace_with_kernel_inject=False,
    ).module
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # AutoTP splits a tied head along its input, so that it no longer is the embedding.
    held = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}

    def cut():
        for name, key in files.by_file(held, _twins(model)):
            # A copy, or the whole file would stay mapped.
            yield name, files.slice(key, held[name], rank(), world).to(device, dtype, copy=True)

    for name, part in slices.parts(ready, held) if ready else cut():
        _put(model, name, torch.nn.Parameter(part.to(device), requires_grad=False))
    for name, buffer in buffers.items():
        _put(model, name, buffer.to(device), buffer=True)
    _prove_split(model, whole, world)
    return model


def _fitting(config, folder):
    """The opened checkpoint of a folder; Problem unless it has just what the model needs."""
    import transformers

    from vecsweep.engine.checkpoint import Checkpoint

    # Not accelerate's skeleton: on it a tied head is a parameter of its own.
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(config)
    files = Checkpoint(folder, skeleton)
    files.check(skeleton)
    return files


def _return_freed_memory():
    """Give memory of a megabyte and more back to the system when it is freed.

    Each tensor is whole for a moment before it is cut; glibc would keep up to 32 MiB of it each
    time.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def _twins(model):
    """The other name of a tied parameter, which may be the one that a checkpoint has."""
    from vecsweep.engine.families import family_of

    embedding = f"{family_of(model).embedding}.weight"
    return {"lm_head.weight": embedding, embedding: "lm_head.weight"}


def _put(model, name, value, buffer=False):
    *path, last = name.split(".")
    module = model.get_submodule(".".join(path))
    if buffer:
        module._buffers[last] = value
    else:
        module._parameters[last] = value


def parts_of(model) -> dict[str, torch.Tensor]:
    """What this rank holds of each parameter, tied ones once; under ZeRO-3 flat pieces."""
    return {name: getattr(p, "ds_tensor", p) for name, p in model.named_parameters()}


def bytes_held(model) -> int:
    """Bytes of the parameters that this rank holds, tied ones once."""
    return sum(part.numel() * part.element_size() for part in parts_of(model).values())


def report(model, description: dict) -> None:
    """Say what each rank holds; Problem unless all ranks take part and none holds everything."""
    world = torch.distributed.get_world_size()
    held = [None] * world
    torch.distributed.all_gather_object(held, bytes_held(model))
    size = torch.finfo(getattr(torch, description["dtype"])).bits // 8
    whole = description["parameters"] * size
    if rank() == 0:
        shares = ", ".join(f"{number / whole:.2f}" for number in held)
        print(f"of {whole / 2**20:.0f} MiB the ranks hold {shares}", file=sys.stderr)
    if world > 1 and any(number >= whole for number in held):
        raise Problem(f"a rank holds the whole model of {whole} bytes; write engine: zero")


def _prove_split(model, whole, world):
    """Problem unless block weights really are split: with a wrong layout DeepSpeed keeps them."""
    held = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    split = [name for name, shape in held.items() if shape != whole.get(name, shape)]
    if not split:
        raise Problem(f"the model was not split over {world} ranks; write engine: zero")


def load_zero(config, folder: Path, dtype: torch.dtype, ready=None, offload=False):
    """The causal LM of a folder under ZeRO-3 inference: every rank holds a part of each tensor.

    Each rank reads just its parts from the files, or all of its own file `ready`; transformers'
    own loading has every rank read everything. With `offload` the parts stay in host memory.
    """
    import deepspeed
    import transformers
    from transformers.initialization import no_init_weights
    from transformers.integrations.deepspeed import prevent_arange_dtype_change

    class Parts(deepspeed.zero.Init):
        """DeepSpeed's own, without sending numbers around that are read from files anyway."""

        def _zero_init_param(self, param):
            self._convert_to_deepspeed_param(param)
            param.partition()

    files = None if ready else _fitting(config, folder)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {
            "stage": 3,
            # bfloat16 results differ from a single process with it.
            "memory_efficient_linear": False,
            # A gathered tensor is dropped once it is used; by default a billion numbers stay.
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
        },
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
    }
    if offload:
        pinned = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        settings["zero_optimization"]["offload_param"] = pinned
    _return_freed_memory()
    with no_init_weights(), prevent_arange_dtype_change(), Parts(config_dict_or_path=settings):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.tie_weights()
    held = parts_of(model)  # pieces of the flattened tensors, the last ones padded
    if ready:
        for name, part in slices.parts(ready, {name: tuple(p.shape) for name, p in held.items()}):
            if held[name].is_cuda or held[name].is_pinned():
                held[name].data.copy_(part)
            else:  # the file's own pages will do
                held[name].data = part
    for name, key in files.by_file(held, _twins(model)) if files else ():
        start = rank() * held[name].numel()
        stop = min(start + held[name].numel(), model.get_parameter(name).ds_numel)
        part = files.flat(key, start, stop)
        held[name].data[: len(part)].copy_(part)
    return deepspeed.initialize(model=model, config=settings)[0].module.eval()
