"""Starts ranks on this machine: processes of a gloo group that run one function and save what it returns."""

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run(function, world_size, *arguments):
    """[what function(rank, world_size, *arguments) returns on each rank], tensors and plain values."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _rank, (world_size, folder, function, arguments), nprocs=world_size, start_method="spawn", join=True
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def _rank(rank, world_size, folder, function, arguments):
    torch.set_num_threads(1)
    # What Accelerate and device meshes look for.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    result = function(rank, world_size, *arguments)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
