"""What the tests of the training engine train: discs on noise and a network of two layers; and the processes for it.

Run as a script it serves runs: it has everything imported, and forks a process for each order that it reads. The
environment tells a run what is to happen to it: ``LOSS=15@7`` and the like, see ``Trouble``.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import csv
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [place for place in (str(ROOT), str(ROOT / "examples")) if place not in sys.path]

from _engine import Recipe, Run  # noqa: E402
from _launch import launch  # noqa: E402
from _options import add_arguments  # noqa: E402
from _processes import Processes  # noqa: E402

from segzoo.layers import get_norm  # noqa: E402
from segzoo.transforms import CutMix  # noqa: E402

ALONE = Processes(0, 1, torch.device("cpu"))


def disc(index: int, size: int = 24) -> tuple[Tensor, Tensor]:
    """A bright disc on noise, ``[3, size, size]`` in 0…1, and its mask ``[1, size, size]``."""
    generator = torch.Generator().manual_seed(index)
    row, column, radius = torch.rand(3, generator=generator).mul(torch.tensor([0.6, 0.6, 0.15])).tolist()
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = (y / size - row - 0.2) ** 2 + (x / size - column - 0.2) ** 2
    mask = (distance <= (radius + 0.12) ** 2)[None].float()
    return 0.5 * torch.rand(3, size, size, generator=generator) + 0.5 * mask, mask


def write_discs(folder: Path, count: int, size: int = 48) -> Path:
    """As PNG files in ``images/`` and ``masks/``."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        image, mask = disc(i, size)
        Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy()).save(folder / f"images/{i:03}.png")
        Image.fromarray((255 * mask[0]).byte().numpy()).save(folder / f"masks/{i:03}.png")
    return folder


class Discs:
    """A data set of them."""

    def __init__(self, count: int = 13, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        if str(index) == os.environ.get("BROKEN"):
            raise ValueError(f"picture {index} is broken")
        return disc(self.first + index)


class Noise:
    """Flips and noise, from a generator that is set for each picture."""

    generator: torch.Generator | None = None

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image = image + 0.05 * torch.randn(image.shape, generator=self.generator)
        flip = torch.rand((), generator=self.generator) < 0.5
        return (image.flip(-1), mask.flip(-1)) if flip else (image, mask)


def as_it_is(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return image, mask


class Net(nn.Module):
    """Convolution, norm, activation, dropout and a head of one class."""

    def __init__(self, norm: str = "batch", dropout: float = 0.0, width: int = 8) -> None:
        super().__init__()
        first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.encoder = nn.Sequential(first, get_norm(norm, width), nn.Dropout2d(dropout), nn.ReLU())
        self.head = nn.Conv2d(width, 1, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def iou(model: nn.Module, processes: Processes = ALONE, count: int = 7) -> dict[str, float]:
    """The intersection over union of all discs that are not learned, and the mean loss."""
    Trouble.happen("EVALUATION")
    training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for i in processes.share(count):
            image, mask = disc(1000 + i)
            logits = model(image[None])[0]
            found, there = logits > 0, mask > 0.5
            both = torch.stack([(found & there).sum(), (found | there).sum()])
            sums += torch.cat([both, nn.functional.binary_cross_entropy_with_logits(logits, mask)[None]])
    model.train(training)
    both, either, loss = processes.added(sums).tolist()
    return {"iou": both / either, "loss": loss / count}


class Trouble:
    """What is to happen when something is done for the n-th time in this process: ``WHAT=ACTION@n``.

    ``WHAT`` is LOSS (one is computed), EVALUATION or EXPORT. The actions are numbers of signals, with + between them
    and a pause where there are two ++; ``nan`` and ``gradient`` for the loss; ``full`` for the disk; ``wait``: say so
    by a file and go on when SIGTERM comes.
    """

    seen: dict[str, int]

    @classmethod
    def happen(cls, what: str) -> str:
        if what not in os.environ:
            return ""
        cls.seen[what] = cls.seen.get(what, 0) + 1
        action, _, at = os.environ[what].partition("@")
        if cls.seen[what] != int(at):
            return ""
        if action == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # Python ignores the signal: an OSError it is
        elif action == "wait":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            Path(os.environ["READY"] + os.environ["RANK"]).touch()
            signal.sigwait({signal.SIGTERM})
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            signal.raise_signal(signal.SIGTERM)
        elif action[0].isdigit():
            for part in action.split("+"):
                if not part:
                    time.sleep(1.2)
                    continue
                os.kill(os.getpid(), int(part))
                time.sleep(0.01)  # so that Python sees it
        return action


Trouble.seen = {}


class _BrokenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("nan")


def loss(logits: Tensor, target: Tensor) -> Tensor:
    value = nn.functional.binary_cross_entropy_with_logits(logits.float(), target)
    action = Trouble.happen("LOSS")
    if action == "gradient":
        return _BrokenGradient.apply(value)
    return value * float("nan") if action == "nan" else value


def accuracy(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    right = (logits > 0) == (target > 0.5)
    return right.sum(), torch.ones_like(right).sum()


def export(model: nn.Module, folder: Path, row: dict[str, float]) -> None:
    Trouble.happen("EXPORT")
    folder.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    (folder / "model.pt").write_bytes(buffer.getvalue())


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options of a tiny run."""
    parser = argparse.ArgumentParser()
    add_arguments(parser, batch_size=3, epochs=3, lr=0.02, device="cpu")
    parser.add_argument("--norm", default="batch")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--mix", action="store_true")
    parser.add_argument("--plain", action="store_true", help="no augmentation")
    parser.add_argument("--pictures", type=int, default=13)
    parser.add_argument("--freeze", action="store_true")
    parser.add_argument("--l1", type=float, default=0.0)
    parser.add_argument("--from-start", action="store_true")
    return parser.parse_args(words)


def recipe(args: argparse.Namespace, processes: Processes = ALONE, **changes: Any) -> Recipe:
    """What a tiny run trains."""
    model = Net(args.norm, args.dropout)
    parts: dict[str, Any] = {
        "model": model,
        "loss": loss,
        "dataset": Discs(args.pictures),
        "transform": as_it_is if args.plain else Noise(),
        "metric": "loss",
        "maximize": False,
        "evaluate": lambda judged: iou(judged, processes),
        "labels": {"iou": "IoU"},
        "mix": CutMix() if args.mix else None,
        "frozen": [model.encoder] if args.freeze else [],
        "l1": args.l1,
        "accuracy": accuracy,
        "export": export,
        "from_start": args.from_start,
    }
    return Recipe(**parts | changes)


def main(args: argparse.Namespace, processes: Processes) -> None:
    print("it begins", flush=True)
    Run(recipe(args, processes), args, processes).fit()


def state(folder: Path) -> dict[str, Any]:
    """A run's checkpoint, without the arguments that may differ."""
    kept: dict[str, Any] = torch.load(folder / "checkpoint.pt", weights_only=True)
    kept["arguments"] = {k: v for k, v in kept["arguments"].items() if k not in ("output", "resume", "workers")}
    return kept


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two states are not the same bits."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        same = a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [found for i in range(len(a)) for found in differences(a[i], b[i], f"{where}/{i}")]
    return [] if a == b else [where]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class Server:
    """The process that forks runs."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )

    def order(self, **what: Any) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:  # a test has given up on a run
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process.stdout.close()

    def __call__(
        self, output: Path, *words: str, script: str = "tiny", processes: int = 1, **environment: Any
    ) -> list[Ended]:
        """Run to the end, in as many processes as torchrun would start; ``LOSS=…`` is for all, ``LOSS_1=…`` for one."""
        shared = {name: str(value) for name, value in environment.items()}
        said = [output.with_name(f"{output.name}.said{rank}") for rank in range(processes)]
        started = []
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = str(free.getsockname()[1])
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
        for rank in range(processes):
            mine = {name: value for name, value in shared.items() if not name.endswith(("_0", "_1"))}
            mine |= {name[:-2]: value for name, value in shared.items() if name.endswith(f"_{rank}")}
            if processes > 1:
                mine |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(
                self.order(words=["--output", str(output), *words], script=script, said=str(said[rank]), env=mine)
            )
        return [Ended(self.order(wait=pid), said[rank]) for rank, pid in enumerate(started)]


class Ended:
    """A process that has ended: its exit status (negative: the signal that ended it) and what it said."""

    def __init__(self, status: int, said: Path) -> None:
        self.status = status
        self.out, self.err = said.read_text(), said.with_suffix(said.suffix + ".err").read_text()

    def __repr__(self) -> str:
        return f"{self.status}\n{self.out}\n{self.err}"


@contextlib.contextmanager
def server() -> Iterator[Server]:
    mine = Server()
    try:
        yield mine
    finally:
        mine.close()


def _end(script: Callable[[list[str]], int], words: list[str]) -> NoReturn:
    """Run a script and end the process as the interpreter would, but for a second that it takes to forget torch."""
    status = 1
    try:
        status = script(words)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    import torch._dynamo  # as optimisers do
    import train_salient

    with contextlib.suppress(ImportError):
        import torch.utils.tensorboard  # noqa: F401 - or each run would
    replies = os.dup(1)
    scripts = {
        "tiny": lambda words: launch(main, parse(words), "tiny"),
        "train_salient": lambda words: launch(train_salient.main, train_salient.parse(words), "train_salient"),
    }
    for text in sys.stdin:
        order = json.loads(text)
        if "wait" in order:
            reply = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        elif (reply := os.fork()) == 0:
            os.close(replies)
            for name, number in ((order["said"], 1), (order["said"] + ".err", 2)):
                file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, number)
            os.environ.update(order["env"])
            _end(scripts[order["script"]], order["words"])
        os.write(replies, f"{reply}\n".encode())


if __name__ == "__main__":
    if sys.argv[1:]:  # under torchrun
        sys.exit(launch(main, parse(sys.argv[1:]), "tiny"))
    serve()
