"""Ranks on this machine: processes that start once and form a gloo group for each question."""

import multiprocessing
import os
import traceback
from multiprocessing import connection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist

TIMEOUT = 300  # seconds for one answer


class Pool:
    """Up to `size` ranks. Ask from one process only; call `end` when done."""

    def __init__(self, size):
        context = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks of torch
        self.pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, theirs))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def ask(self, function, world_size, *arguments):
        """Returns [function(rank, world_size, *arguments) of each rank]: tensors and plain values."""
        with TemporaryDirectory() as folder:
            for pipe in self.pipes[:world_size]:
                pipe.send((function, world_size, folder, arguments))
            waiting = self.pipes[:world_size]
            while waiting:
                ready = connection.wait(waiting, TIMEOUT)
                errors = [pipe.recv() for pipe in ready] if ready else [f"no answer within {TIMEOUT} seconds"]
                if any(errors):  # the other ranks may wait for this one for ever
                    self.end(patience=0)
                    raise AssertionError("\n".join(errors))
                waiting = [pipe for pipe in waiting if pipe not in ready]
            return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world_size)]

    def end(self, patience=30):
        """Ends the processes, those still busy after so many seconds by force."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(patience)
            process.kill()
            process.join()


def _serve(rank, pipe):
    torch.set_num_threads(1)
    while True:
        try:
            function, world_size, folder, arguments = pipe.recv()
        except EOFError:
            return
        # What Accelerate and device meshes look for.
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "ACCELERATE_USE_CPU": "true"}
        try:
            store = dist.FileStore(f"{folder}/store", world_size)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
            torch.save(function(rank, world_size, *arguments), f"{folder}/{rank}.pt")
            dist.barrier()  # none leaves while another still talks to it
            dist.destroy_process_group()
            pipe.send("")
        except BaseException:
            pipe.send(f"rank {rank} of {world_size}: {traceback.format_exc()}")
            raise
