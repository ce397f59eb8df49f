"""What one process of test_integrations.py does: an example without, before and after an interruption."""

import contextlib
import importlib
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

EXAMPLES = Path(__file__).parents[2] / "examples" / "integrations"


def run(rank: int, name: str, world: int, folder: Path, stop_after: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    # The frameworks ask for an address and then take the group that is there; a file cannot be in use by others.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "HF_HUB_OFFLINE": "1"}
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", world), rank=rank, world_size=world)
    torch.set_num_threads(1)
    sys.path.insert(0, str(EXAMPLES))
    toy, example = importlib.import_module("toy"), importlib.import_module(name)
    whole, before, after = toy.Record(), toy.Record(stop_after), toy.Record()
    expected = example.train(folder / "whole", whole)
    with contextlib.suppress(toy.Interrupted):
        example.train(folder / "interrupted", before)
    actual = example.train(folder / "interrupted", after)
    states = [[part.state_dict() for part in parts] for parts in (expected, actual)]
    records = {"whole": whole.batches, "before": before.batches, "after": after.batches}
    torch.save({"states": states, **records}, folder / f"{rank}.pt")
    dist.barrier()  # none leaves while another still talks to it
    dist.destroy_process_group()
