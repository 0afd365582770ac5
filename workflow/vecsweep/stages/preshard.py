"""Stage `preshard`: what each process of a sharded model holds, in a file of its own.

Optional: jobs that start from these files need not look for their slices in the checkpoint.
"""

import shutil

import torch

from vecsweep import Problem
from vecsweep.engine import load, sharded, slices
from vecsweep.files import read_json, replacing, write_tensors


def run(args):
    """Load the model as any job does; every process writes the slices that it then holds."""
    if args.shards == 1:
        raise Problem("preshard is for models of several shards; write shards: 2 or more")
    description = read_json(args.model)
    how = args.batch_tokens, args.shards, args.engine, args.offload
    engine = load.load(description, args.model, *how)
    process = sharded.process()
    notes = slices.notes(description, engine.sharding, args.shards, process)
    try:
        with replacing(slices.file_of(args.output, process)) as temporary:
            write_tensors(sharded.parts_of(engine.model), temporary, notes)
            torch.distributed.barrier()  # all files or none
    except BaseException:
        shutil.rmtree(args.output, ignore_errors=True)  # a folder that is there counts as done
        raise
