"""One process or several: `--devices N` forks them on this machine, torchrun starts them on any number.

Forked processes do nothing but train; they share the decoded images with the process that goes on. Under
torchrun every process runs the whole command, and all but the first leave when all training is done.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed

from edge_resnet.errors import EdgeResnetError, InputError, MissingToolError
from edge_resnet.training.ranks import Ranks

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

__all__ = ["WorkerDone", "is_worker", "launch", "leave_worker", "under_torchrun"]

_JOIN_SECONDS = 10.0

T = TypeVar("T")


class WorkerDone(Exception):  # noqa: N818 (no error)
    """This process helped to train, and another one goes on: leave quietly."""


def under_torchrun() -> bool:
    """Whether torchrun (or what sets the same variables) started several processes."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_worker() -> bool:
    """Whether this is a process of torchrun's that only helps to train, and writes nothing."""
    return under_torchrun() and int(os.environ["RANK"]) > 0


def leave_worker() -> None:
    """Raises WorkerDone in all processes but the first: called when all training is done."""
    if is_worker():
        raise WorkerDone


def launch(work: Callable[[Ranks], T], devices: int, device: str, low: bool) -> T:
    """Run `work` in each process at once, and return what it answers in the first.

    `device` is cpu or cuda; `low`: bfloat16 autocast. Raises InputError where `devices` cannot be had.
    """
    if under_torchrun():
        if devices > 1:
            raise InputError(f"--devices {devices}: torchrun starts the processes; leave --devices out")
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

        # The group stays for the next training: a second rendezvous would meet the first one's addresses.
        return work(_join(TorchElasticEnvironment(), device, low))
    if devices == 1:
        from edge_resnet.training.environment import ForkedEnvironment

        # Given, so that Fabric does not look for a scheduler's.
        return work(_join(ForkedEnvironment(0, 1, 0), device, low))
    if device == "cuda" or sys.platform != "linux":
        raise InputError(
            f"--devices {devices}: processes are forked for CPUs on Linux only; start them yourself: "
            f"torchrun --nproc-per-node {devices} -m edge_resnet ..."
        )
    return _with_children(work, devices, low)


def _join(environment: ClusterEnvironment, device: str, low: bool) -> Ranks:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.strategy import Strategy

    world = environment.world_size()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world)) if under_torchrun() else world
    strategy: str | Strategy = DDPStrategy() if world > 1 else "auto"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # importing it has set another
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=world // here,
        strategy=strategy,
        precision="bf16-mixed" if low else "32-true",
        plugins=[environment],
    )
    fabric.launch()
    return Ranks(fabric)


def _with_children(work: Callable[[Ranks], T], world: int, low: bool) -> T:
    from edge_resnet.training.environment import ForkedEnvironment

    port, threads = _free_port(), torch.get_num_threads()
    share = max(1, threads // world)

    def trained(rank: int) -> T:
        torch.set_num_threads(share)
        return work(_join(ForkedEnvironment(rank, world, port), "cpu", low))

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    children = [
        context.Process(target=_child, args=(trained, rank, sender), daemon=True) for rank in range(1, world)
    ]
    finished = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forking with threads
            for child in children:
                child.start()
        sender.close()
        answer = trained(0)
        finished = True
        return answer
    except MissingToolError:
        if receiver.poll(_JOIN_SECONDS):  # why the other one was lost
            raise _sent(receiver) from None
        raise
    finally:
        for child in children:
            if finished:
                child.join(_JOIN_SECONDS)
            if child.is_alive():
                child.kill()
                child.join()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)


def _child(trained: Callable[[int], Any], rank: int, sender: Connection) -> None:
    """The rest of a forked process's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends it

    def run() -> None:
        try:
            trained(rank)
        except EdgeResnetError as error:
            sender.send(error)
        except BaseException:
            sender.send(RuntimeError(f"process {rank}: {traceback.format_exc()}"))

    # In a thread of its own: GNU OpenMP waits for ever for the forking thread's helpers, which are not here.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def _sent(receiver: Connection) -> Exception:
    try:
        error: Exception = receiver.recv()
    except EOFError:
        return MissingToolError(
            "a training process was killed; give the same command again: it goes on from the checkpoint"
        )
    return error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
