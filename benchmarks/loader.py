"""How fast pictures and masks come out of a loader: segzoo's data sets beside plain torchvision, paired in one process.

    OMP_NUM_THREADS=2 python benchmarks/loader.py --data ../shared/data --json benchmarks/results/loader.json

Each case is a torch DataLoader over the same shuffled pictures, in batches of 8, with workers that stay; a pass over
all of them is timed. Batches of CamVid are stacked; those of ECSSD, of many sizes, are lists. Before anything is timed,
all have to give the same pixels and labels.

- plain: a Dataset of a dozen lines in torchvision's idiom: Pillow opens both files, `tv_tensors.Image` and `Mask`.
- decode_image: the same, with `torchvision.io.decode_image` in Pillow's place.
- segzoo: `CamVid(root)` and `ECSSD(root)`, which also check each mask's labels and size.
- memory, folder: the same with `cache="memory"` and with a folder, after every picture was decoded once.
- ready: clones of tensors that the process has, no file looked at: what the loader itself, which moves each batch
  from its worker through shared memory, leaves of the fastest cache.

Medians of pictures per second; and the pairs' ratios to plain, their median (lowest–highest): above 1 is faster than
plain. On a busy machine the median of ratios is not the ratio of medians: the interval says how sure it is. With --sets
and --workers only these cases run, and --json keeps what the file has of the others.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import machine
from _results import read_results, result_file, write_results
from _timing import interleaved
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.io import decode_image
from torchvision.transforms.v2 import functional as F

from segzoo.datasets import ECSSD, CamVid, SegmentationDataset

SETS: dict[str, Callable[..., SegmentationDataset]] = {
    "camvid": lambda data, cache: CamVid(data / "camvid", "train", cache=cache),
    "ecssd": lambda data, cache: ECSSD(data / "ecssd", cache=cache),
}
PEERS = ("decode_image", "segzoo", "memory", "folder", "ready")


class Plain(Dataset):
    """What one writes by hand."""

    def __init__(self, files: list[tuple[Path, Path]], salient: bool) -> None:
        self.files, self.salient = files, salient

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        image, mask = self.decoded(*self.files[index])
        mask = (mask > 127).to(torch.uint8) if self.salient else mask.masked_fill_(mask == 11, 255)
        return tv_tensors.Image(image), tv_tensors.Mask(mask)

    def decoded(self, image: Path, mask: Path) -> tuple[torch.Tensor, torch.Tensor]:
        return F.pil_to_tensor(Image.open(image).convert("RGB")), F.pil_to_tensor(Image.open(mask))[0]


class Decoded(Plain):
    """The same with torchvision's own decoders."""

    def decoded(self, image: Path, mask: Path) -> tuple[torch.Tensor, torch.Tensor]:
        return decode_image(str(image), mode="RGB"), decode_image(str(mask), mode="UNCHANGED")[0]


class Ready(Dataset):
    """Items that are there."""

    def __init__(self, dataset: Dataset, chosen: list[int]) -> None:
        self.items = {i: dataset[i] for i in chosen}

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self.items[index]
        return tv_tensors.Image(image.clone()), tv_tensors.Mask(mask.clone())


def as_lists(batch: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Pictures of several sizes cannot be stacked."""
    return [image for image, _ in batch], [mask for _, mask in batch]


def loaders(name: str, data: Path, folder: Path, pictures: int, workers: int) -> dict[str, DataLoader]:
    """A loader for each candidate, over the same pictures in the same order, once all agree and the caches are full."""
    kept = {"segzoo": None, "memory": "memory", "folder": folder}
    ours = {kind: SETS[name](data, cache) for kind, cache in kept.items()}
    samples = ours["segzoo"].samples
    files = [(sample.image, sample.mask) for sample in samples]
    sets = {"plain": Plain(files, name == "ecssd"), "decode_image": Decoded(files, name == "ecssd"), **ours}
    chosen = np.random.default_rng(0).permutation(len(samples))[:pictures].tolist()
    sets["ready"] = Ready(ours["segzoo"], chosen)
    for i in chosen:
        expected = sets["plain"][i]
        for kind in (*PEERS, "memory", "folder"):  # decoded, and from the cache
            for found, wanted in zip(sets[kind][i], expected):
                assert found.dtype == wanted.dtype and torch.equal(found, wanted), (name, kind, files[i])
    options: dict[str, Any] = {"persistent_workers": workers > 0, "collate_fn": as_lists if name == "ecssd" else None}
    return {
        kind: DataLoader(Subset(candidate, chosen), batch_size=8, num_workers=workers, **options)
        for kind, candidate in sets.items()
    }


def one_pass(loader: DataLoader) -> None:
    for _ in loader:
        pass


def measure(name: str, data: Path, workers: int, pictures: int, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        candidates = loaders(name, data, Path(folder), pictures, workers)
        times = interleaved({kind: lambda it=loader: one_pass(it) for kind, loader in candidates.items()}, repeats)
        for loader in candidates.values():
            loader._iterator = None  # ends its workers
        del candidates, loader
        gc.collect()
    row: dict[str, Any] = {"set": name, "workers": workers, "pictures": pictures, "repeats": repeats}
    row["per_second"] = {kind: pictures / statistics.median(seconds) for kind, seconds in times.items()}
    for key, of_all in (("ratio", statistics.median), ("lowest_ratio", min), ("highest_ratio", max)):
        row[key] = {kind: of_all(a / b for a, b in zip(times["plain"], times[kind])) for kind in PEERS}
    return row


def cells(row: dict[str, Any]) -> str:
    speeds = [f"{row['per_second'][kind]:,.0f}" for kind in ("plain", *PEERS)]
    ratios = [
        f"{row['ratio'][kind]:.2f} ({row['lowest_ratio'][kind]:.2f}–{row['highest_ratio'][kind]:.2f})" for kind in PEERS
    ]
    return f"| {row['set']} | {row['workers']} | {' | '.join(speeds)} | {' | '.join(ratios)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="a folder with camvid/ and ecssd/")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=160, help="in a pass")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=result_file, help="write the results to this file too")
    args = parser.parse_args()
    columns = ["set", "workers", "plain", *PEERS, *(f"{kind} ÷ plain" for kind in PEERS)]
    print(f"| {' | '.join(columns)} |\n|:--{'|--:' * (len(columns) - 1)}|")
    rows = []
    for name in args.sets:
        for workers in args.workers:
            rows.append(measure(name, args.data, workers, args.pictures, args.repeats))
            print(cells(rows[-1]), flush=True)
    print(machine())
    if args.json:
        kept = read_results(args.json)
        merged = {(row["set"], row["workers"]): row for row in [*kept.get("rows", []), *rows]}
        write_results(args.json, {"rows": [merged[key] for key in sorted(merged)]}, seed=0, kept=kept)


if __name__ == "__main__":
    main()
