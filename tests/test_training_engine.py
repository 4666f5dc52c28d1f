"""The training engine in this process: against loops and averages written by hand, and what it refuses."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from training_cases import ALONE, Discs, Net, Noise, differences, loss, parse, recipe, rows, state

# isort: split
# training_cases has put examples/ on the path.
import _engine
import _journal
import _launch
import train_salient
from _batches import Augmented, EpochBatches, seed_of
from _checkpoint import load as load_checkpoint
from _data import read_data
from _engine import Diverged, Run
from _journal import line, write_history
from _launch import launch
from _lock import Lock
from _options import SCHEDULES, half_precision
from _processes import Processes, processes

import segzoo
from segzoo.layers import replace_norm

pytestmark = pytest.mark.usefixtures("one_thread", "seeds_are_put_back")

SHORT = ["--epochs", "1", "--plain", "--norm", "group"]


@pytest.fixture
def seeds_are_put_back() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    torch.set_rng_state(before)


def start(folder: Path, *words: str, **changes: Any) -> Run:
    """A tiny run whose first weights are always the same."""
    args = parse(["--output", str(folder), *words])
    torch.manual_seed(1)
    return Run(recipe(args, **changes), args, ALONE)


def fitted(folder: Path, *words: str, **changes: Any) -> Run:
    run = start(folder, *words, **changes)
    run.fit()
    return run


def rates(run: Run) -> list[list[float]]:
    """Of each update and group."""
    seen: list[list[float]] = []
    step = run.optimizer.step

    def note(*args: Any, **options: Any) -> Any:
        seen.append([group["lr"] for group in run.optimizer.param_groups])
        return step(*args, **options)

    run.optimizer.step = note  # type: ignore[method-assign]
    run.fit()
    return seen


def close(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 2e-6, rtol: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}"
        )


def decay(schedule: str, t: int, total: int) -> float:
    """What a schedule multiplies the rate with at update t of ``total`` after the warm-up, in float64."""
    return {
        "cosine": lambda: 0.5 * (1 + math.cos(math.pi * t / total)),
        "poly": lambda: (1 - t / total) ** 0.9,
        "step": lambda: 0.1 ** (t // math.ceil(total / 3)),
        "constant": lambda: 1.0,
    }[schedule]()


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.75])
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_schedules_are_their_formulas(tmp_path: Path, schedule: str, warmup: float) -> None:
    words = ["--schedule", schedule, "--warmup", str(warmup), "--lr", "0.03", "--encoder-lr", "0.1", "--epochs", "3"]
    run = start(tmp_path / "run", *words, "--plain", "--pictures", "12", evaluate=None, export=None)
    seen = np.array(rates(run))
    warm = round(4 * warmup)
    factors = [(t + 1) / (warm + 1) if t < warm else decay(schedule, t - warm, 12 - warm) for t in range(12)]
    names = [group["name"] for group in run.optimizer.param_groups]
    scales = [0.1 if name.startswith("encoder") else 1.0 for name in names]
    assert len(set(scales)) == 2
    np.testing.assert_allclose(seen, 0.03 * np.outer(factors, scales), rtol=1e-12)
    assert [row["lr"] for row in run.history] == pytest.approx([0.03 * factors[t] for t in (3, 7, 11)], rel=1e-12)


def test_a_warm_up_as_long_as_the_run_leaves_an_update(tmp_path: Path) -> None:
    run = start(tmp_path / "run", "--warmup", "9", "--epochs", "1", "--plain", "--pictures", "12", evaluate=None)
    np.testing.assert_allclose([lr for lr, *_ in rates(run)], [0.02 * k / 4 for k in (1, 2, 3, 4)], rtol=1e-12)


def by_hand(run: Run, clip: float | None = None, l1: float = 0.0, ema: float | None = None) -> dict[str, Any]:
    """The run's epochs in a plain loop, with all pictures of an update at once; SGD with momentum."""
    model = copy.deepcopy(run.raw).train()
    average = copy.deepcopy(model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    groups = [
        {"params": decayed, "weight_decay": run.args.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=run.args.lr, momentum=0.9)
    updates, number = run.batches.updates, 0
    size = run.args.batch_size * run.args.accumulate
    for epoch in range(run.args.epochs):
        order = [i for batch in batches(len(run.recipe.dataset), run.args.seed, size, epoch=epoch) for _, i in batch]
        for at in range(0, updates * size, size):
            pictures = [run.recipe.dataset.read(i) for i in order[at : at + size]]
            x, target = (torch.stack(part) for part in zip(*pictures))
            for group in optimizer.param_groups:
                group["lr"] = run.args.lr * decay("cosine", number, run.args.epochs * updates)
            optimizer.zero_grad()
            penalty = l1 * sum(p.abs().sum() for p in decayed)
            (nn.functional.binary_cross_entropy_with_logits(model(x), target) + penalty).backward()
            if clip is not None:
                norm = torch.stack([p.grad.double().norm() for p in model.parameters()]).norm().item()
                for p in model.parameters():
                    p.grad *= min(1.0, clip / (norm + 1e-6))
            optimizer.step()
            if ema is not None:  # timm's: the decay rises from 0 as 1 - (1 + n)^-2/3
                now = min(ema, 1 - (1 + number) ** (-2 / 3))
                for mine, new in zip(average.parameters(), model.parameters()):
                    mine.data = now * mine.data + (1 - now) * new.data
            number += 1
    return {"model": model.state_dict(), "ema": average.state_dict()}


def batches(pictures: int, seed: int, size: int, *, epoch: int = 0, skip: int = 0, **more: int) -> list[Any]:
    sampler = EpochBatches(pictures, seed, size, **more)
    sampler.epoch, sampler.skip = epoch, skip
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--batch-size", "6"], {}),
        (["--batch-size", "3", "--accumulate", "2"], {}),
        (["--batch-size", "1", "--accumulate", "6", "--clip-grad", "0.2", "--l1", "0.003"], {"clip": 0.2, "l1": 0.003}),
        (["--batch-size", "6", "--no-channels-last", "--weight-decay", "0.1", "--ema", "0.6"], {"ema": 0.6}),
    ],
)
def test_a_run_is_a_plain_loop(tmp_path: Path, words: list[str], options: dict[str, Any]) -> None:
    basic = ["--optimizer", "sgd", "--lr", "0.1", "--plain", "--norm", "group", "--epochs", "2"]
    run = start(tmp_path / "run", *basic, *words, evaluate=None, export=None)
    expected = by_hand(run, **options)
    before = copy.deepcopy(run.raw.state_dict())
    run.fit()
    close(run.raw.state_dict(), expected["model"])
    assert not torch.allclose(before["head.weight"], expected["model"]["head.weight"], atol=1e-4)
    if "ema" in options:
        close(run.evaluated.state_dict(), expected["ema"])
        assert not torch.allclose(expected["ema"]["head.weight"], expected["model"]["head.weight"], atol=1e-4)
    else:
        assert run.evaluated is run.raw


def test_clipping_does_something(tmp_path: Path) -> None:
    basic = [*SHORT, "--optimizer", "sgd"]
    clipped, free = (fitted(tmp_path / f"{i}", *basic, *more) for i, more in enumerate((["--clip-grad", "0.05"], [])))
    assert differences(clipped.raw.state_dict(), free.raw.state_dict())


def test_biases_and_norms_do_not_decay(tmp_path: Path) -> None:
    run = start(tmp_path / "run", "--weight-decay", "0.1", "--encoder-lr", "0.5")
    names = {id(p): name for name, p in run.raw.named_parameters()}
    found = {
        names[id(p)]: (group["weight_decay"], group["name"].split(",")[0])
        for group in run.optimizer.param_groups
        for p in group["params"]
    }
    assert found == {
        "encoder.0.weight": (0.1, "encoder"),
        "encoder.1.weight": (0.0, "encoder"),
        "encoder.1.bias": (0.0, "encoder"),
        "head.weight": (0.1, "rest"),
        "head.bias": (0.0, "rest"),
    }


def test_what_is_frozen_does_not_change(tmp_path: Path) -> None:
    run = start(tmp_path / "run", "--freeze", "--ema", "0.5", "--epochs", "1")
    before = copy.deepcopy(run.raw.state_dict())
    run.fit()
    for after in (run.raw.state_dict(), run.evaluated.state_dict()):
        assert differences(dict(after), dict(before)) == ["/head.weight", "/head.bias"]
    moved = fitted(tmp_path / "moved", "--epochs", "1")
    assert "/encoder.1.running_mean" in differences(dict(moved.raw.state_dict()), dict(before))
    with pytest.raises(ValueError, match="nothing to train: every parameter is frozen"):
        model = Net()
        start(tmp_path / "all", model=model, frozen=[model])


def test_the_seed_decides_everything_and_matters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def main(args: Any, mine: Processes) -> None:
        Run(recipe(args, mine), args, mine).fit()

    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        torch.rand(5)
        words = ["--output", str(tmp_path / name), *SHORT, "--seed", seed]
        assert launch(main, parse(words), "tiny") == 0
    same, other = (differences(state(tmp_path / "a")["model"], state(tmp_path / name)["model"]) for name in "bc")
    assert same == [] and "/head.weight" in other
    first = [start_of(tmp_path / name, seed) for name, seed in (("d", "3"), ("e", "4"))]
    assert not torch.equal(*first)  # the first weights too


def start_of(folder: Path, seed: str) -> Tensor:
    seen: list[Tensor] = []

    def main(args: Any, mine: Processes) -> None:
        seen.append(Net().head.weight.detach())

    assert launch(main, parse(["--output", str(folder), "--seed", seed]), "tiny") == 0
    return seen[0]


def test_bfloat16_on_the_cpu(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    def note(logits: Tensor, target: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return loss(logits, target)

    half = fitted(tmp_path / "half", *SHORT, "--amp", "bf16", loss=note)
    assert set(seen) == {torch.bfloat16} and all(p.dtype == torch.float32 for p in half.raw.parameters())
    whole = fitted(tmp_path / "whole", *SHORT)
    close(half.raw.state_dict(), whole.raw.state_dict(), atol=0.02, rtol=0.1)


@pytest.mark.slow
def test_compiled_is_the_same(tmp_path: Path) -> None:
    compiled = fitted(tmp_path / "compiled", *SHORT, "--compile", "--ema", "0.5")
    close(compiled.raw.state_dict(), fitted(tmp_path / "plain", *SHORT).raw.state_dict(), atol=1e-4)


def test_recomputed_is_the_same(tmp_path: Path) -> None:
    words = [*SHORT, "--norm", "batch"]
    recomputed = fitted(tmp_path / "recomputed", *words, "--recompute")
    close(dict(recomputed.raw.state_dict()), dict(fitted(tmp_path / "plain", *words).raw.state_dict()), atol=1e-5)


def test_the_first_evaluation_of_somebodys_weights(tmp_path: Path) -> None:
    run = fitted(tmp_path / "run", "--from-start", "--epochs", "2", "--eval-every", "2")
    assert [row["epoch"] for row in run.history] == [0, 1, 2]
    assert ["iou" in row for row in run.history] == [True, False, True]
    table = rows(tmp_path / "run")
    assert [row["train_loss"] == "" for row in table] == [True, False, False]
    assert [float(row["loss"] or "nan") for row in table][::2] == [run.history[0]["loss"], run.history[2]["loss"]]


def test_the_best_epoch_is_exported(tmp_path: Path) -> None:
    figures: Iterator[float] = iter([0.5, math.nan, 0.7, 0.6])
    exported: list[tuple[str, float]] = []
    run = fitted(
        tmp_path / "run", "--epochs", "4", "--plain",
        evaluate=lambda model: {"iou": next(figures)}, metric="iou", maximize=True,
        export=lambda model, folder, row: exported.append((folder.name, row.get("epoch", -1))),
    )  # fmt: skip
    assert run.best is not None and run.best["epoch"] == 3
    assert exported[0][1] == -1 and exported[1:] == [("best", 1), ("best", 3)]  # a trial before the first step


def test_a_loss_that_is_not_finite_says_what_to_look_at(tmp_path: Path) -> None:
    calls: list[int] = []

    def bad(logits: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return loss(logits, target) * (math.inf if len(calls) == 7 else 1)

    run = start(tmp_path / "run", "--plain", "--lr", "0.025", "--schedule", "constant", loss=bad)
    with pytest.raises(Diverged) as caught:
        run.fit()
    said = str(caught.value)
    assert said.startswith("the loss is inf in epoch 2, update 3 of 4, at lr 0.025; ")
    for word in ("parameters are not finite", "--lr", "--warmup", "--clip-grad", "--amp off", "masks"):
        assert word in said
    kept = state(tmp_path / "run")
    assert kept["epoch"] == 1 and all(value.isfinite().all() for value in kept["model"].values())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--lr", "0.5"], "--lr 0.02 and is to go on with 0.5"),
        (["--epochs", "9"], "--epochs 1 and is to go on with 9"),
        (["--ema", "0.5"], "--ema 0.0 and is to go on with 0.5"),
        (["--batch-size", "2"], "--batch-size 3"),
        (["--seed", "7"], "--seed 0"),
        (["--freeze"], "--freeze False and is to go on with True"),
    ],
)
def test_other_arguments_are_another_run(tmp_path: Path, finished: Path, changed: list[str], said: str) -> None:
    with pytest.raises(ValueError, match="the run was started with " + said) as caught:
        start(finished, *SHORT, "--resume", "auto", *changed)
    assert "another --output for a new run" in str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    fitted(folder, *SHORT)
    return folder


def test_free_arguments_may_change(finished: Path) -> None:
    run = start(finished, *SHORT, "--resume", "auto", "--workers", "1", "--cache", "memory", "--license", "mit")
    assert run.epoch == 1 and len(run.history) == 1 and run.best == run.history[0]
    assert set(vars(parse(["--output", "x"]))) >= {"workers", "cache", "license", "output", "resume", "device"}


def test_a_folder_with_a_run_is_not_written_over(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has a run already: --resume auto goes on with it, another --output"):
        start(finished, *SHORT)
    fitted(tmp_path / "other", *SHORT, "--seed", "5")
    with pytest.raises(ValueError, match="has a run already"):
        start(finished, *SHORT, "--resume", str(tmp_path / "other/checkpoint.pt"))
    there = finished / "checkpoint.pt"
    assert start(finished, *SHORT, "--resume", str(there)).epoch == 1
    assert state(finished)["arguments"]["seed"] == 0


def test_a_checkpoint_goes_on_in_another_folder_with_its_best_epoch(finished: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "new", *SHORT, "--resume", str(finished / "checkpoint.pt"))
    assert run.epoch == 1 and run.best == run.history[0]
    assert (tmp_path / "new/best/model.pt").read_bytes() == (finished / "best/model.pt").read_bytes()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    assert start(tmp_path / "newer", *SHORT, "--resume", str(tmp_path / "alone/checkpoint.pt")).best is None


class Evil:
    """Would write a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "kind", ["half", "empty", "text", "list", "format", "older", "pickle", "evil", "none", "folder"]
)
def test_what_is_no_checkpoint(finished: Path, tmp_path: Path, kind: str) -> None:
    there, mark = tmp_path / "checkpoint.pt", tmp_path / "mark"
    whole = (finished / "checkpoint.pt").read_bytes()
    kinds: dict[str, Callable[[], Any]] = {
        "half": lambda: there.write_bytes(whole[: len(whole) // 2]),
        "empty": lambda: there.touch(),
        "text": lambda: there.write_text("no checkpoint"),
        "list": lambda: torch.save([1, 2], there),
        "format": lambda: torch.save({"format": 99}, there),
        "older": lambda: torch.save({"model": {}}, there),
        "pickle": lambda: there.write_bytes(pickle.dumps({"format": 1, "evil": Evil(mark)})),
        "evil": lambda: torch.save({"format": 1, "evil": Evil(mark)}, there),
        "none": lambda: None,
        "folder": there.mkdir,
    }
    kinds[kind]()
    error = FileNotFoundError if kind in ("none", "folder") else ValueError
    with pytest.raises(error) as caught:
        start(tmp_path / "run", *SHORT, "--resume", str(there))
    said = str(caught.value)
    assert str(there) in said and "checkpoint" in said and "\n" not in said and len(said) < 300 + len(str(there))
    assert "weights_only" not in said  # torch's advice is to run what is in the file
    assert not mark.exists()
    if kind in ("format", "older"):
        assert "its format is " + {"format": "99", "older": "none"}[kind] in said


def test_a_damaged_checkpoint_of_this_folder_is_said(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes()[:5000])
    with pytest.raises(ValueError, match="is no checkpoint of a training run: it is damaged"):
        start(tmp_path / "run", *SHORT, "--resume", "auto")
    assert load_checkpoint(finished / "checkpoint.pt")["epoch"] == 1


def test_a_checkpoint_that_not_all_processes_see(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "added", lambda self, values: values)  # the others add nothing
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    args = parse(["--output", str(finished), *SHORT, "--resume", "auto"])
    with pytest.raises(ValueError, match="is seen by 1 of 2 processes, expected a folder that all share"):
        Run(recipe(args), args, Processes(0, 2, torch.device("cpu")))


def test_exit_statuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = parse(["--output", str(tmp_path / "run")])
    failures: list[tuple[BaseException, int, str]] = [
        (ValueError("wrong"), 2, "tiny: error: wrong\n"),
        (FileNotFoundError("nowhere"), 2, "tiny: error: nowhere\n"),
        (ImportError("not there"), 2, "tiny: error: not there\n"),
        (Diverged("nan"), 1, "tiny: error: nan\n"),
        (_engine.Stopped(15), 143, "tiny: stopped by SIGTERM; --resume auto goes on\n"),
        (_engine.Stopped(2), 130, "tiny: stopped by SIGINT; --resume auto goes on\n"),
        (KeyboardInterrupt(), 130, ""),
    ]
    for error, status, said in failures:

        def main(args: Any, mine: Processes, error: BaseException = error) -> None:
            raise error

        assert launch(main, args, "tiny") == status
        assert capsys.readouterr().err == said

    def broken(args: Any, mine: Processes) -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        launch(broken, args, "tiny")


@pytest.mark.parametrize("device", ["gpu", "cuda", "mps", "cuda:7"])
def test_a_device_that_is_not_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ValueError, match=f"--device is '?{device}"), processes(device):
        pass


def test_each_process_has_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    chosen: list[Any] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend: chosen.append(backend))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    with processes() as mine:
        assert (mine.rank, mine.count, mine.main) == (5, 8, False)
        assert list(mine.share(20)) == [5, 13] and chosen == [torch.device("cuda:1"), "nccl"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ValueError, match="process 5 would be on GPU 1, and there are 1"), processes():
        pass


@given(total=st.integers(0, 50), count=st.integers(1, 7))
def test_shares_are_all_once(total: int, count: int) -> None:
    parts = [Processes(rank, count, torch.device("cpu")).share(total) for rank in range(count)]
    assert sorted(i for part in parts for i in part) == list(range(total))


SIZES = {
    "pictures": st.integers(1, 60),
    "size": st.integers(1, 5),
    "accumulate": st.integers(1, 3),
    "seed": st.integers(0, 99),
    "epoch": st.integers(0, 5),
}


@given(**SIZES, count=st.integers(1, 4))
def test_processes_see_together_what_one_sees(
    pictures: int, size: int, accumulate: int, seed: int, epoch: int, count: int
) -> None:
    one = batches(pictures, seed, size * count, accumulate=accumulate, epoch=epoch)
    parts = [
        batches(pictures, seed, size, accumulate=accumulate, rank=rank, count=count, epoch=epoch)
        for rank in range(count)
    ]
    assert [[item for part in parts for item in part[i]] for i in range(len(parts[0]))] == one
    assert all(len(batch) == size for part in parts for batch in part)
    assert len({len(part) for part in parts}) == 1 and len(one) % accumulate == 0
    update = size * accumulate * count
    seen = [index for batch in one for _, index in batch]
    counts = [seen.count(index) for index in range(pictures)]
    assert {e for batch in one for e, _ in batch} == {epoch}
    assert len(seen) == max(1, pictures // update) * update
    assert max(counts) - min(counts) <= 1 and (max(counts) == 1 or pictures < update)


@given(**SIZES, data=st.data())
def test_what_is_skipped_is_exactly_what_was_seen(
    pictures: int, size: int, accumulate: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    whole = batches(pictures, seed, size, accumulate=accumulate, epoch=epoch)
    skip = data.draw(st.integers(0, len(whole) // accumulate))
    rest = batches(pictures, seed, size, accumulate=accumulate, epoch=epoch, skip=skip)
    assert rest == whole[skip * accumulate :]


def test_each_epoch_has_its_own_order() -> None:
    orders = [
        [i for batch in batches(40, seed, 4, epoch=epoch) for _, i in batch] for seed in (0, 1) for epoch in (0, 1)
    ]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    with pytest.raises(ValueError, match="there is no picture to learn"):
        EpochBatches(0, 0, 1)


def test_pictures_are_a_function_of_seed_epoch_and_index() -> None:
    made = Augmented(Discs(8), Noise(), seed=3)
    first = {(e, i): made[e, i] for e in (0, 1) for i in range(8)}
    for e, i in [(1, 5), (0, 5), (0, 2)]:  # in another order, by another object, whatever else is drawn
        torch.manual_seed(e + i)
        assert differences(list(Augmented(Discs(8), Noise(), seed=3)[e, i]), list(first[e, i])) == []
    assert not torch.equal(first[0, 5][0], first[1, 5][0])
    assert not torch.equal(first[0, 5][0], Augmented(Discs(8), Noise(), seed=4)[0, 5][0])
    sampler = EpochBatches(8, 3, 2)
    loader = DataLoader(made, batch_sampler=sampler, num_workers=2, persistent_workers=True)
    for sampler.epoch in (0, 1):
        for got, batch in zip(loader, sampler, strict=True):
            expected = [torch.stack(part) for part in zip(*(first[item] for item in batch))]
            assert differences(list(got), expected) == []


def test_seeds() -> None:
    assert seed_of(1, "a") == seed_of(1, "a") < 2**63
    assert len({seed_of(*parts) for parts in [(1, 2), (2, 1), (12,), (1, "2"), ("order", 1), ("mix", 1)]}) == 6


def test_lines_of_the_log() -> None:
    row = {"epoch": 3, "train_loss": 0.5, "lr": 2e-5, "train_accuracy": 0.98765, "miou": math.nan, "hidden": 3.0}
    labels = {"miou": "mIoU", "train_accuracy": "train_accuracy"}
    assert line(row, {"miou": "mIoU"}) == "[epoch: 3] train_loss: 0.5000 lr: 2e-05 mIoU: nan"
    assert line(row, labels) == "[epoch: 3] train_loss: 0.5000 lr: 2e-05 train_accuracy: 0.988 mIoU: nan"
    assert line(row, {}) == "[epoch: 3] train_loss: 0.5000 lr: 2e-05"


@given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=5))
def test_the_table_has_every_digit(values: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("table")
    write_history(folder / "history.csv", [{"epoch": i, "a" if i else "b": value} for i, value in enumerate(values)])
    read = rows(folder)
    assert [float(row["a"] if i else row["b"]) for i, row in enumerate(read)] == values
    assert all(row["a" if i == 0 else "b"] == "" for i, row in enumerate(read) if len(values) > 1)


def test_curves_after_an_interruption(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    lines = [{"epoch": float(epoch), "iou": epoch / 10, "empty": math.nan} for epoch in (1, 2, 3)]
    first = _journal.Curves(tmp_path, [])
    for row in lines[:2]:
        first.add(row)
    first.close()
    second = _journal.Curves(tmp_path, lines[:2])  # the second was in the checkpoint, perhaps not in the curves
    second.add(lines[2])
    second.close()
    read = accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, round(event.value, 6)) for event in read.Scalars("iou")] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert read.Tags()["scalars"] == ["iou"]


def test_without_tensorboard_there_are_no_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    run = fitted(tmp_path / "run", *SHORT)
    assert len(run.history) == 1 and not (tmp_path / "run/tensorboard").exists()


@pytest.mark.parametrize("encoder", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "resnet10t"])
def test_synchronised_norms_keep_the_activations_in_them(encoder: str, tmp_path: Path) -> None:
    model = segzoo.unet(encoder, encoder_weights=None, num_classes=2).eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = model(x)
    args = parse(["--output", str(tmp_path)])
    gpus = Processes(0, 2, torch.device("cuda"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "to", lambda self, *args, **options: self)
        synchronised = _engine._on_device(model, args, gpus)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronised.modules())
    torch.testing.assert_close(synchronised.cpu().eval()(x), before, atol=0, rtol=0)


def test_a_frozen_norm_that_becomes_synchronised_stays_frozen(tmp_path: Path) -> None:
    model = segzoo.unet(num_classes=2, base_channels=4)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    args = parse(["--output", str(tmp_path)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_engine, "_on_device", lambda model, *_: replace_norm(model, "sync_batch"))
        run = Run(recipe(args, model=model, frozen=norms[:2]), args, ALONE)
    run._train_mode()
    frozen = [module for module in run.raw.modules() if isinstance(module, nn.SyncBatchNorm) and not module.training]
    assert len(frozen) == 2 and not any(value.requires_grad for module in frozen for value in module.parameters())


def test_other_pictures_are_refused(tmp_path: Path) -> None:
    class Named(Discs):
        names = ("a", "b")

    fitted(tmp_path, "--epochs", "1", dataset=Discs(12))
    with pytest.raises(ValueError, match="started with 12 training pictures and is to go on with 13: give"):
        start(tmp_path, "--epochs", "1", "--resume", "auto", dataset=Discs(13))
    with pytest.raises(ValueError, match="started with 12 training pictures and is to go on with 12 others: give"):
        start(tmp_path, "--epochs", "1", "--resume", "auto", dataset=Named(12))


def test_one_run_at_a_time_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("fcntl")
    monkeypatch.setattr(_launch, "PATIENCE", 0.0)
    first = Lock(tmp_path, "")
    args = parse(["--output", str(tmp_path)])
    assert launch(lambda *_: pytest.fail("it has begun"), args, "tiny") == 2
    assert capsys.readouterr().err == f"tiny: error: another run is writing into {tmp_path}\n"
    first.close()
    assert launch(lambda *_: None, args, "tiny") == 0


def test_recomputing_is_not_asked_of_a_compiler(tmp_path: Path, capsys: Any) -> None:
    args = parse(["--output", str(tmp_path), "--compile", "--recompute"])
    assert launch(lambda *_: pytest.fail("it has begun"), args, "tiny") == 2
    assert "give it or --recompute, not both" in capsys.readouterr().err


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_that_only_emulates_bfloat16_takes_float16(
    native: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert half_precision("auto", torch.device("cuda")) == expected


def test_learned_and_tested_pictures_are_apart(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in "abcd":
            Image.new("L", (8, 8), 255).save(tmp_path / folder / f"{name}.png")
    words = ["--data", str(tmp_path), "--output", "x"]
    for options in (
        ["--test-images", str(tmp_path / "images"), "--test-masks", str(tmp_path / "masks")],
        ["--train-names", "a:c", "--test-names", "c:d"],
    ):
        with pytest.raises(ValueError, match="must leave the parts apart"):
            read_data(train_salient.parse([*words, *options]), task="salient")
    data = read_data(train_salient.parse([*words, "--train-names", "a:c", "--test-names", "d:d"]), task="salient")
    assert [part.names for part in (data.train, data.held_out, data.test) if part] == [["a", "b"], ["c"], ["d"]]
