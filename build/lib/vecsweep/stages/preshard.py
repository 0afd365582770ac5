"""Stage `preshard`: what each rank of a sharded model holds, in a file a rank.

Optional: jobs that start from these files need not look for their slices in the checkpoint.
"""

from vecsweep import Problem
from vecsweep.files import read_json, replacing, write_tensors


def run(args):
    """Load the model as any job does; every rank writes what it then holds."""
    import torch

    from vecsweep.engine import load, sharded, slices

    if args.shards == 1:
        raise Problem("preshard is for models of several shards; write shards: 2 or more")
    description = read_json(args.model)
    how = args.batch_tokens, args.shards, args.engine, args.offload
    engine = load.load(description, args.model, *how)
    kind = "tensor" if engine.shards > 1 else "zero"
    notes = slices.notes(description, kind, args.shards, sharded.rank())
    with replacing(slices.file_of(args.output, sharded.rank())) as temporary:
        write_tensors(sharded.parts_of(engine.model), temporary, notes)
        torch.distributed.barrier()  # all files or none
