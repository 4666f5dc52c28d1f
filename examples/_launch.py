"""How a training script starts and ends: one sentence for what went wrong, and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable

import torch
from _checkpoint import seed_generators
from _engine import Diverged, Stopped, leave_no_parts, prepare_output
from _lock import Lock
from _processes import Processes, processes

PATIENCE = 15.0  # seconds for a run that is just ending, and its workers


def launch(main: Callable[[argparse.Namespace, Processes], None], args: argparse.Namespace, name: str) -> int:
    """Run a script's ``main`` in this process and say in one sentence what went wrong.

    Returns:
        The exit status: 0, 1 where the loss diverged or a GPU is full, 2 for arguments, files and disks that will not
        do, 143 after SIGTERM, 130 after Ctrl-C.
    """
    rank, count = (int(os.environ.get(variable, 0)) for variable in ("RANK", "WORLD_SIZE"))

    def say(text: str, common: bool = False) -> None:
        # The first speaks for all and ends, which takes it a second or two, and torchrun ends the others: what one of
        # them says later was its own.
        time.sleep(5.0 if rank else 0.0)
        if not (rank and common):
            print(f"{name}: {text}", file=sys.stderr)

    with contextlib.ExitStack() as held:
        try:
            if args.compile and args.recompute:
                raise ValueError("--compile chooses by itself what is computed again: give it or --recompute, not both")
            if rank == 0:
                prepare_output(args)  # before anything is read
                held.callback(Lock(args.output, f"another run is writing into {args.output}", PATIENCE).close)
                leave_no_parts(args.output)
            seed_generators(args.seed)  # a model's first weights
            with processes(args.device) as mine:
                main(args, mine)
        except Stopped as stopped:
            if rank == 0:
                say(str(stopped))
            return stopped.code
        except Diverged as error:
            say(f"error: {error}", common=True)
            return 1
        except (OSError, TypeError, ValueError, ImportError) as error:
            say(f"error: {_sentence(error)}")
            return 2
        except torch.OutOfMemoryError as error:
            advice = "a smaller --batch-size with --accumulate, or --recompute, needs less"
            say(f"error: the GPU's memory is full: {advice} ({str(error).splitlines()[0]})")
            return 1
        except RuntimeError:
            # Of a connection that another process has left: that one is to say why.
            time.sleep(10.0 if count > 1 else 0.0)
            raise
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
    return 0


def _sentence(error: Exception) -> str:
    """What an error says; of one in a ``DataLoader``'s worker the last line, without the worker's stack."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    kind, colon, said = text.strip().splitlines()[-1].partition(": ")
    return said if colon else kind
