"""What the training scripts share: processes, batches that depend on the seed alone, the loop, and what is kept of it.

A run is the same whatever it runs on and however often it is interrupted: which pictures a step sees and how they are
augmented is a function of seed, epoch and picture, not of what was drawn before. N processes with batches of b see
together what one process sees with batches of N·b. The distributed engine is PyTorch's own (DistributedDataParallel
under torchrun).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _batches import Augmented, EpochBatches, seed_of
from _checkpoint import NAME, check_same, load, random_state, save, seed_generators, set_random_state, writing
from _journal import Curves, Row, line, write_history
from _options import OPTIMIZERS, SCHEDULES, half_precision
from _processes import Asked, Processes, leave_signals
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from segzoo._files import check_writable, write_whole
from segzoo._progress import progress_bar
from segzoo.layers import FrozenBatchNorm, recompute_activations, replace_norm
from segzoo.models.parameters import param_groups

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# Arguments without a part in what is learned: they may differ when a run goes on.
FREE = {"cache", "data", "device", "images", "masks", "output", "predict", "resume", "workers"}
FREE |= {"test_images", "test_masks", "test_names", "license", "data_licence", "mst", "mst_scales", "deterministic"}


class Stopped(Exception):
    """The run was asked to stop, and is saved. ``code`` is the exit status that says by which signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; --resume auto goes on")
        self.code = 128 + number


class Diverged(RuntimeError):
    """The loss or a weight is not a number any more."""


@dataclass
class Recipe:
    """What a script trains and how it is judged.

    Args:
        model: Of this library, on the CPU.
        loss: From the model's outputs in train mode and the target to a number.
        dataset: With ``read(index)``: picture and mask.
        transform: To what a step sees.
        metric: Which of ``evaluate``'s figures chooses the best epoch.
        evaluate: From a model to figures on held-out pictures, the same in every process; None: there are none.
        maximize: Whether more of the metric is better.
        labels: How figures are called in the log: ``{"mae": "MAE"}``. Others are only in ``history.csv``.
        mix: CutMix or the like, on the device; its ``generator`` is set for each batch.
        frozen: Modules that are not trained: eval mode, no gradients.
        l1: Factor of the sum of all decayed weights' absolute values.
        accuracy: From the main logits and the target to how many pixels are right, and how many count.
        export: Writes a model as a folder that can be loaded; gets model, folder, figures, and those on test pictures
            where there are such.
        from_start: Whether to evaluate before the first step too: the weights are somebody's already.
    """

    model: nn.Module
    loss: Callable[[Any, Tensor], Tensor]
    dataset: Sized
    transform: Callable[..., Any]
    metric: str
    evaluate: Callable[[nn.Module], dict[str, float]] | None
    maximize: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)
    mix: Mix | None = None
    frozen: Sequence[nn.Module] = ()
    l1: float = 0.0
    accuracy: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    export: Callable[..., None] | None = None
    from_start: bool = False


class Run:
    """A model that learns, and where it is in that; ``fit`` goes on from there to the end.

    Args:
        recipe: What is trained.
        args: The parsed options of ``add_arguments``.
        processes: This one and the others.

    Attributes:
        history: A row of figures for each epoch that is done.
        best: The best epoch's row so far, or None.
    """

    def __init__(self, recipe: Recipe, args: argparse.Namespace, processes: Processes) -> None:
        self.recipe, self.args, self.processes = recipe, args, processes
        self.folder: Path = args.output
        checkpoint = _checkpoint_to_resume(args, processes)
        seed_generators(args.seed + processes.rank)
        _set_backends(args)
        frozen = [name for name, module in recipe.model.named_modules() if any(module is one for one in recipe.frozen)]
        self.raw = _on_device(recipe.model, args, processes)
        self.frozen = [self.raw.get_submodule(name) for name in frozen]  # a norm may be another one now
        for module in self.frozen:
            module.requires_grad_(False)
        groups = param_groups(self.raw, lr=args.lr, weight_decay=args.weight_decay, encoder_lr_scale=args.encoder_lr)
        if not groups:
            raise ValueError("there is nothing to train: every parameter is frozen")
        for group in groups:
            group["lr"] = args.lr  # the schedule counts lr_scale in, while it warms up too
        self.optimizer = OPTIMIZERS[args.optimizer](groups, lr=args.lr, fused=_fused(processes.device))
        self.ema = ModelEmaV3(self.raw, decay=args.ema, use_warmup=True) if args.ema else None
        self.batches = EpochBatches(
            len(recipe.dataset), args.seed, args.batch_size, args.accumulate, processes.rank, processes.count
        )
        total = args.epochs * self.batches.updates
        warm = min(round(args.warmup * self.batches.updates), total - 1)
        self.schedule = SCHEDULES[args.schedule](
            self.optimizer, total - warm, t_in_epochs=False, warmup_t=warm, warmup_lr_init=args.lr / (warm + 1)
        )
        self.half = half_precision(args.amp, processes.device)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=self.half == torch.float16)
        self.epoch = self.position = 0
        self.sums = torch.zeros(4, dtype=torch.float64)  # loss, batches, right pixels, counted pixels of this epoch
        self.history: list[Row] = []
        self.best: Row | None = None
        if checkpoint is not None:
            self._load(checkpoint)
        self.sums = self.sums.to(processes.device, torch.float32 if processes.device.type == "mps" else torch.float64)
        self.ddp = _parallel(self.raw, processes)
        self.model: Callable[[Tensor], Any] = self.raw if self.ddp is None else self.ddp
        if processes.main and recipe.export is not None and not self.history:
            with tempfile.TemporaryDirectory(dir=self.folder) as trial:  # what cannot be exported is no surprise later
                recipe.export(self.evaluated, Path(trial), {})
        if args.compile:
            self.model = torch.compile(self.model)
        self._lr = self._rate()
        self._asked = Asked()

    @property
    def evaluated(self) -> nn.Module:
        """What is judged and exported: the averaged weights where there are such, else the model."""
        return self.raw if self.ema is None else self.ema.module

    def fit(self) -> None:
        """Train to the last epoch.

        Raises:
            Stopped: SIGTERM or SIGINT came; the run is saved as it is, in the middle of an epoch too.
            Diverged: The loss or a weight is not finite; the last checkpoint is from before.
            OSError: What is to be kept cannot be written.
        """
        with contextlib.ExitStack() as block:
            curves = None
            if self.processes.main:
                curves = block.enter_context(contextlib.closing(Curves(self.folder / "tensorboard", self.history)))
                if self.history:
                    self._write_logs()  # the run may have been ended after its checkpoint and before them
            loader = self._loader()
            block.callback(_end_workers, loader)
            block.enter_context(self._asked)
            if self.recipe.from_start and not self.history:
                self._finish_epoch({"epoch": 0} | self._evaluated(), curves)
            while self.epoch < self.args.epochs:
                figures = self._train_epoch(loader)
                last = self.epoch + 1 == self.args.epochs
                if last or (self.epoch + 1) % self.args.eval_every == 0:
                    figures |= self._evaluated()
                self.epoch, self.position = self.epoch + 1, 0
                self.sums.zero_()
                self._finish_epoch({"epoch": self.epoch, **figures}, curves)
                self._obey()

    def _loader(self) -> DataLoader[Any]:
        workers, cuda = self.args.workers, self.processes.device.type == "cuda"
        return DataLoader(
            Augmented(self.recipe.dataset, self.recipe.transform, self.args.seed),
            batch_sampler=self.batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=leave_signals,
            pin_memory=cuda,
            generator=torch.Generator().manual_seed(self.args.seed),  # or it would draw from the global one
        )

    def _train_epoch(self, loader: DataLoader[Any]) -> Row:
        self._train_mode()
        self.batches.epoch, self.batches.skip = self.epoch, self.position
        show = self.processes.main
        batches = iter(loader)
        with progress_bar(self.batches.updates, show, unit="updates") as bar:
            bar.set_description(f"epoch {self.epoch + 1}/{self.args.epochs}")
            bar.update(self.position)
            while self.position < self.batches.updates:
                self._update(batches)
                self.position += 1
                bar.update()
                # A GPU is not waited for at each step.
                if (
                    self.processes.device.type == "cpu"
                    or self.position % 10 == 0
                    or self.position == self.batches.updates
                ):
                    total = self._check()
                    bar.set_postfix_str(f"loss {total[0] / total[1]:.4f}")
        loss, count, right, counted = self.processes.added(self.sums.clone()).tolist()
        row: Row = {"train_loss": loss / count, "lr": self._lr}
        return row | ({"train_accuracy": right / counted if counted else math.nan} if self.recipe.accuracy else {})

    def _update(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """One update of the weights, from ``--accumulate`` batches."""
        number = self.epoch * self.batches.updates + self.position
        self.schedule.step_update(number)
        self._lr = self._rate()
        for i in range(self.args.accumulate):
            x, target = self._batch(next(batches), number, i)
            last = i + 1 == self.args.accumulate
            alone = contextlib.nullcontext() if last or self.ddp is None else self.ddp.no_sync()
            with alone:
                with torch.autocast(x.device.type, self.half or torch.bfloat16, enabled=self.half is not None):
                    outputs = self.model(x)
                    loss = self.recipe.loss(outputs, target)
                self.scaler.scale((loss + self._penalty()) / self.args.accumulate).backward()
            self._count(loss, outputs, target)
        if self.args.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.raw.parameters(), self.args.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.raw, step=number + 1)

    def _batch(self, batch: tuple[Tensor, Tensor], *place: int) -> tuple[Tensor, Tensor]:
        layout = torch.channels_last if self.args.channels_last else torch.contiguous_format
        x = batch[0].to(self.processes.device, non_blocking=True, memory_format=layout)
        target = batch[1].to(self.processes.device, non_blocking=True)
        if self.recipe.mix is None:
            return x, target
        if hasattr(self.recipe.mix, "generator"):
            seed = seed_of(self.args.seed, "mix", *place, self.processes.rank)
            self.recipe.mix.generator = torch.Generator().manual_seed(seed)
        x, target = self.recipe.mix(x, target)
        return x.contiguous(memory_format=layout), target

    def _penalty(self) -> Tensor | float:
        if not self.recipe.l1:
            return 0.0
        weights = [p for group in self.optimizer.param_groups for p in group["params"] if p.ndim > 1]
        return self.recipe.l1 * torch.stack([weight.abs().sum() for weight in weights]).sum()

    @torch.no_grad()
    def _count(self, loss: Tensor, outputs: Any, target: Tensor) -> None:
        self.sums[0] += loss.detach()
        self.sums[1] += 1
        if self.recipe.accuracy is not None:
            right, counted = self.recipe.accuracy(outputs if isinstance(outputs, Tensor) else outputs[0], target)
            self.sums[2] += right
            self.sums[3] += counted

    def _rate(self) -> float:
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def _train_mode(self) -> None:
        self.raw.train()
        for module in self.frozen:
            module.eval()

    def _check(self) -> list[float]:
        """All processes' sums; stop where one of them was asked to, or where loss or weights are not finite."""
        total = self.processes.added(torch.cat([self.sums[:2], self._signal()])).tolist()
        if not math.isfinite(total[0]):
            raise Diverged(self._why(f"the loss is {total[0]}", self._broken()))
        # The gradient of a finite loss may have been none: such weights must not be saved.
        saving = total[2] or self.position == self.batches.updates
        if saving and (broken := self._broken()):
            raise Diverged(self._why("the weights are not finite", broken))
        if total[2]:
            self._stop()
        return total

    def _signal(self) -> Tensor:
        return torch.tensor([float(self._asked.number)], dtype=self.sums.dtype, device=self.sums.device)

    def _obey(self) -> None:
        """Stop where one of the processes was asked to."""
        if self.processes.added(self._signal()).item():
            self._stop()

    def _stop(self) -> None:
        self._save()
        if self.processes.count > 1:
            dist.barrier()  # as soon as one has ended, torchrun ends the others: not while one writes
        raise Stopped(self._asked.number or signal.SIGTERM)

    def _broken(self) -> list[str]:
        return [name for name, value in self.raw.named_parameters() if not value.isfinite().all()]

    def _why(self, what: str, broken: list[str]) -> str:
        weights = f"{len(broken)} parameters are not finite, {broken[0]} first" if broken else "all weights are finite"
        return (
            f"{what} in epoch {self.epoch + 1}, update {self.position} of {self.batches.updates}, at lr "
            f"{self._lr:.3g}; {weights}; try a lower --lr, a longer --warmup, --clip-grad 1 or --amp off, and look "
            "for masks without a counted pixel"
        )

    def _evaluated(self) -> dict[str, float]:
        if self.recipe.evaluate is None:
            return {}
        if self.processes.count > 1:
            for value in self.evaluated.buffers():  # on the CPU each process has statistics of its own pictures
                dist.broadcast(value, 0)
        figures = self.recipe.evaluate(self.evaluated)
        self._obey()
        return figures

    def _finish_epoch(self, row: Row, curves: Curves | None) -> None:
        self.history.append(row)
        metric = row.get(self.recipe.metric, math.nan)
        if not math.isnan(metric) and (self.best is None or self._better(metric, self.best[self.recipe.metric])):
            self.best = row
            if self.processes.main and self.recipe.export is not None:
                with writing("the best epoch's model", self.folder):
                    self.recipe.export(self.evaluated, self.folder / "best", row)
        self._save()
        if self.processes.main:
            self._write_logs()
            print(line(row, self.recipe.labels), flush=True)
        if curves is not None:
            curves.add(row)

    def _write_logs(self) -> None:
        with writing("the log", self.folder):
            write_history(self.folder / "history.csv", self.history)
            with write_whole(self.folder / "train.log") as file:
                file.write("".join(line(row, self.recipe.labels) + "\n" for row in self.history).encode())

    def _better(self, value: float, than: float) -> bool:
        return value > than if self.recipe.maximize else value < than

    def _save(self) -> None:
        rng = random_state()
        sums = self.processes.added(self.sums.clone()).cpu()
        if not self.processes.main:
            return
        state = {
            "model": self.raw.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "epoch": self.epoch,
            "position": self.position,
            "sums": sums,
            "history": self.history,
            "best": self.best,
            "rng": rng,
            "arguments": plain(self.args),
            "processes": self.processes.count,
            "pictures": _pictures(self.recipe.dataset),
        }
        save(self.folder, state)

    def _load(self, state: dict[str, Any]) -> None:
        before, now = state["pictures"], _pictures(self.recipe.dataset)
        if before != now:
            raise ValueError(
                f"the run was started with {before['count']} training pictures and is to go on with {now['count']}"
                f"{'' if before['count'] != now['count'] else ' others'}: give the ones it had, or another --output"
            )
        check_same(state["arguments"], plain(self.args), FREE)
        if state["processes"] != self.processes.count and state["position"]:
            raise ValueError(
                f"the run stopped in the middle of an epoch with {state['processes']} processes and is to go on with "
                f"{self.processes.count}: start as many as there were"
            )
        self.raw.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled() and state["scaler"]:  # it has none from where there was no float16
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.epoch, self.position = state["epoch"], state["position"]
        if self.processes.main:
            self.sums = state["sums"]
        self.history = state["history"]
        self.best = state["best"] if self._bring_best() else None
        set_random_state(state["rng"], self.processes.rank)

    def _bring_best(self) -> bool:
        """Whether the best epoch's model is in the folder: a checkpoint of another brings it along."""
        here = self.folder / "best"
        there = here if self.args.resume == "auto" else Path(self.args.resume).parent / "best"
        if self.recipe.export is None or here.is_dir():
            return True
        if not there.is_dir():
            return False
        if self.processes.main:
            shutil.copytree(there, here)
        return True


def _pictures(dataset: Sized) -> dict[str, int]:
    """How many pictures are learned and, where they have names, which."""
    return {"count": len(dataset), "names": seed_of(*getattr(dataset, "names", ()))}


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """The options as values that JSON and a safe ``torch.load`` know."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def prepare_output(args: argparse.Namespace) -> None:
    """Make the folder, and raise what would otherwise be found after the first epoch.

    Raises:
        OSError: Nothing can be written there.
        ValueError: It has another run.
    """
    there = args.output / NAME
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"the folder cannot be made: {error.strerror}", str(args.output)) from error
    check_writable(there)
    if there.exists() and args.resume != "auto" and Path(args.resume).resolve() != there.resolve():
        raise ValueError(
            f"{args.output} has a run already: --resume auto goes on with it, another --output starts anew"
        )


def leave_no_parts(folder: Path) -> None:
    """Remove what a run that was killed has left of files; nobody else may be writing there."""
    for part in folder.glob(f".{'[0-9a-f]' * 32}.part"):  # of write_whole
        part.unlink()


def _checkpoint_to_resume(args: argparse.Namespace, processes: Processes) -> dict[str, Any] | None:
    """The state to go on from, once it is sure that a new one can be written; None: a new run."""
    if processes.main:
        prepare_output(args)
    if processes.count > 1:
        dist.barrier()
    there = args.output / NAME if args.resume in ("auto", "never") else Path(args.resume)
    seen = int(processes.added(torch.tensor([float(there.exists())], device=processes.device)).item())
    if 0 < seen < processes.count:
        raise ValueError(f"{there} is seen by {seen} of {processes.count} processes, expected a folder that all share")
    return None if args.resume == "never" or (args.resume == "auto" and not seen) else load(there)


def _set_backends(args: argparse.Namespace) -> None:
    torch.backends.cudnn.benchmark = not args.deterministic
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def _on_device(model: nn.Module, args: argparse.Namespace, processes: Processes) -> nn.Module:
    several_gpus = processes.count > 1 and processes.device.type == "cuda"
    if several_gpus and not any(isinstance(module, FrozenBatchNorm) for module in model.modules()):
        # Not torch's own conversion, which loses the activations that timm's norms have in them.
        model = replace_norm(model, "sync_batch")
    if args.recompute:
        recompute_activations(model)
    model = model.to(processes.device)
    return model.to(memory_format=torch.channels_last) if args.channels_last else model


def _parallel(model: nn.Module, processes: Processes) -> DistributedDataParallel | None:
    if processes.count == 1:
        return None
    return DistributedDataParallel(model, device_ids=[processes.device] if processes.device.type == "cuda" else None)


def _end_workers(loader: DataLoader[Any]) -> None:
    """Now, not when all that knows of them is forgotten: an error does."""
    if hasattr(loader._iterator, "_shutdown_workers"):
        loader._iterator._shutdown_workers()


def _fused(device: torch.device) -> bool | None:
    return True if device.type in ("cpu", "cuda") else None
