"""Models that are spread over several devices by DeepSpeed: tensor parallel or ZeRO-3.

Every process runs the same stage on the same prompts; process 0 decodes and writes. All processes
hold the full activations after each sublayer, so that hooks and edits work as in a single one.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import prevent_arange_dtype_change

from vecsweep import Problem
from vecsweep.engine import slices
from vecsweep.engine.checkpoint import Checkpoint
from vecsweep.engine.families import tensor_parallel
from vecsweep.files import Tensors

Sharding = Literal["single", "tensor", "zero"]
Wanted = Literal["auto", "single", "tensor", "zero"]  # the config's `engine`


def choose(
    wanted: Wanted, shards: int, model_type: str, heads: int, offload: bool = False
) -> Sharding:
    """How a model is run, by the config's `engine` (`wanted`) and `shards`, and its family.

    auto: single for one shard; tensor where AutoTP supports the family and the shards divide the
    attention heads; zero otherwise, and always with `offload`.
    """
    if offload:
        if wanted in ("single", "tensor"):
            raise Problem(f"engine: {wanted} cannot offload; write engine: zero or auto")
        return "zero"
    if shards == 1:
        if wanted in ("tensor", "zero"):
            raise Problem(f"engine: {wanted} needs shards: 2 or more")
        return "single"
    if wanted == "single":
        raise Problem(
            f"engine: single runs on one device, but shards: {shards}; write engine: auto"
        )
    if wanted == "tensor":
        if not tensor_parallel(model_type):
            raise Problem(
                f"engine: tensor cannot split the family '{model_type}'; write engine: zero or auto"
            )
        if heads % shards:
            fits = ", ".join(str(n) for n in range(2, heads + 1) if heads % n == 0)
            raise Problem(
                f"shards: {shards} does not divide the model's {heads} attention heads; "
                f"choose from {fits}, or engine: zero"
            )
        return "tensor"
    if wanted == "auto" and tensor_parallel(model_type) and heads % shards == 0:
        return "tensor"
    return "zero"


def process() -> int:
    """The number of this process among those that share the model; 0 in a single one."""
    return int(os.environ.get("RANK", 0))


def start() -> None:
    """Join the job's process group; RANK, WORLD_SIZE and MASTER_ADDR are in the environment."""
    import deepspeed  # takes seconds
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
    """The processes' parts of a tensor on their way into `whole`; `wait()` for them.

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


def load_tensor(config: Any, dtype: torch.dtype, weights: Checkpoint | Tensors) -> Any:
    """A causal LM, split by AutoTP over all processes.

    The skeleton has no memory; each process then reads just its slices from the checkpoint, in
    the files' own dtype, or all of its own file of slices.
    """
    import deepspeed
    from accelerate import init_empty_weights

    processes = torch.distributed.get_world_size()
    with init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    whole = _shapes(model)
    # init_inference replaces modules and loses their buffers.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model = deepspeed.init_inference(
        model,
        tensor_parallel={"tp_size": processes, "tp_grain_size": 1},
        dtype=dtype,
        replace_with_kernel_inject=False,
    ).module
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # AutoTP splits a tied head along its input, so that it no longer is the embedding.
    held = _shapes(model)
    if held == {name: whole.get(name, shape) for name, shape in held.items()}:
        # With a layout that it does not know DeepSpeed keeps every weight whole.
        raise Problem(f"the model was not split over {processes} processes; write engine: zero")

    def cut(files: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
        for name, key in files.by_file(held):
            part = files.slice(key, held[name], process(), processes)
            # A copy, or the whole file would stay mapped.
            yield name, part.to(device, dtype, copy=True)

    found = cut(weights) if isinstance(weights, Checkpoint) else slices.parts(weights, held)
    for name, part in found:
        module, last = _place(model, name)
        module._parameters[last] = torch.nn.Parameter(part.to(device), requires_grad=False)
    for name, buffer in buffers.items():
        module, last = _place(model, name)
        module._buffers[last] = buffer.to(device)
    return model


def _shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by name, tied ones under each of theirs."""
    return {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}


def _place(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    """(module, its own name for it) of a parameter or buffer."""
    path, _, last = name.rpartition(".")
    return model.get_submodule(path), last


def checked(config: Any, folder: Path) -> Checkpoint:
    """The opened checkpoint of a folder; Problem unless it has just what the model needs."""
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


def parts_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What this process holds of each parameter, tied ones once; under ZeRO-3 flat pieces."""
    return {name: getattr(p, "ds_tensor", p) for name, p in model.named_parameters()}


def bytes_held(model: torch.nn.Module) -> int:
    """Bytes of the parameters that this process holds, tied ones once."""
    return sum(part.numel() * part.element_size() for part in parts_of(model).values())


def report(model: torch.nn.Module, description: dict) -> None:
    """Say what each process holds; Problem unless all take part and none holds everything."""
    held = gathered(bytes_held(model))
    size = torch.finfo(getattr(torch, description["dtype"])).bits // 8
    whole = description["parameters"] * size
    if process() == 0:
        shares = ", ".join(f"{number / whole:.2f}" for number in held)
        print(f"of {whole / 2**20:.0f} MiB the processes hold {shares}", file=sys.stderr)
    if len(held) > 1 and any(number >= whole for number in held):
        raise Problem(f"a process holds the whole model of {whole} bytes; write engine: zero")


def gathered(mine: Any) -> list:
    """What every process gives, in their order: on each of them, which all must call this."""
    every = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, mine)
    return every


def load_zero(
    config: Any, dtype: torch.dtype, weights: Checkpoint | Tensors, offload: bool = False
) -> Any:
    """A causal LM under ZeRO-3 inference: every process holds a part of each tensor.

    Each process reads just its parts from the checkpoint, or all of its own file of slices;
    transformers' own loading has every one read everything. With `offload` the parts stay in host
    memory.
    """
    import deepspeed

    class Parts(deepspeed.zero.Init):
        """DeepSpeed's own, without sending numbers around that are read from files anyway."""

        def _zero_init_param(self, param):
            self._convert_to_deepspeed_param(param)
            param.partition()

    settings: dict[str, Any] = {
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
    if isinstance(weights, Checkpoint):
        for name, key in weights.by_file(held):
            start = process() * held[name].numel()
            stop = min(start + held[name].numel(), model.get_parameter(name).ds_numel)
            part = weights.flat(key, start, stop)
            held[name].data[: len(part)].copy_(part)
    else:
        shapes = {name: tuple(part.shape) for name, part in held.items()}
        for name, part in slices.parts(weights, shapes):
            if held[name].is_cuda or held[name].is_pinned():
                held[name].data.copy_(part)
            else:  # the file's own pages will do
                held[name].data = part
    return deepspeed.initialize(model=model, config=settings)[0].module.eval()
