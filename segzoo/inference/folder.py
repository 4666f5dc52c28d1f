"""A folder of pictures in, a folder of results out."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from segzoo._errors import unknown_name
from segzoo._pairs import pictures_in
from segzoo._progress import progress_bar
from segzoo.inference.colours import parse_colour
from segzoo.inference.picture import PictureLike, check_output, format_for
from segzoo.inference.prediction import KINDS, Kind, Prediction, check_cutout_options, output_mode
from segzoo.inference.predictor import Predictor

__all__ = ["FolderReport", "predict_folder"]


@dataclass
class FolderReport:
    """What became of the pictures of a folder.

    Args:
        written: Input to output, in order.
        failed: Input to the reason why there is no output.
        skipped: Input to the output that was there already, where ``skip_existing`` asked for that.
    """

    written: dict[Path, Path] = field(default_factory=dict)
    failed: dict[Path, Exception] = field(default_factory=dict)
    skipped: dict[Path, Path] = field(default_factory=dict)


def predict_folder(
    predictor: Predictor,
    pictures: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    kind: Kind = "mask",
    *,
    suffix: str = ".png",
    recursive: bool = False,
    skip_existing: bool = False,
    shard: tuple[int, int] = (0, 1),
    workers: int = 2,
    progress: bool = False,
    background: str | None = None,
    hard: bool = False,
    clean_rim: bool = False,
    classes: Sequence[int | str] | int | str | None = None,
) -> FolderReport:
    """Predict every picture of a folder; a bad one is noted and skipped.

    Pictures are decoded and results encoded in threads, while the model runs batches of ``predictor.batch_size``.

    Args:
        predictor: What to predict with.
        pictures: A folder, or a list of picture files.
        destination: A folder, made if it is not there. ``photo.jpg`` becomes ``photo.png`` in it; where two pictures
            would share a name, ``photo.jpg.png``.
        kind: See ``Prediction.render``.
        suffix: What the results' names end in, which names their format: ``".webp"``, ``"_cut.png"``.
        recursive: Whether folders in the folder are followed; the results lie in the same folders.
        skip_existing: Whether a picture whose result is there already is left alone: to go on where a run stopped.
            Results are written whole, so a file that is there is complete; whether it was made with the same
            arguments is not looked at.
        shard: ``(which, of)``: this call does every ``of``-th picture, beginning at number ``which``. Calls with 0 to
            ``of - 1``, in as many processes, write together the files of one call, under the same names.
        workers: Threads to decode with, and as many to encode.
        progress: Whether to show a bar on stderr, where that is a terminal.
        background: See ``Prediction.cutout``.
        hard: See ``Prediction.cutout``.
        clean_rim: See ``Prediction.cutout``.
        classes: See ``Prediction.cutout``.

    Returns:
        What was written and what failed, of the share that ``shard`` names.

    Raises:
        ValueError: If there is no picture, the destination is the folder itself, a result would overwrite one of the
            pictures, its format is unknown or has no transparency, or there is no such shard.
        OSError: If the folder cannot be read or the destination cannot be made.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    which, of = shard
    if not 0 <= which < of:
        raise ValueError(f"shard is (which, of) with 0 <= which < of, got {shard}")
    if kind not in KINDS:
        raise unknown_name("kind of picture", kind, KINDS)
    check_cutout_options(kind, background, hard, clean_rim, classes)
    if background is not None:
        parse_colour(background)
    mode = output_mode(kind, background)
    if not Path(f"picture{suffix}").suffix:
        raise ValueError(f"suffix {suffix!r} names no picture format, such as '.png' or '_cut.png'")
    format_for(mode, f"picture{suffix}")
    destination = Path(destination)
    # Of all pictures, as it is their names together that decide a result's name; and the share before what is there is
    # left out, as other processes may be writing theirs at this moment.
    plan = dict(islice(_plan(pictures, destination, suffix, recursive).items(), which, None, of))
    report = FolderReport()
    if skip_existing:
        report.skipped = {source: target for source, target in plan.items() if target.is_file()}
        plan = {source: target for source, target in plan.items() if source not in report.skipped}
    destination.mkdir(parents=True, exist_ok=True)
    check_output(destination / f"picture{suffix}", mode)  # now, not after the work

    def save(prediction: Prediction, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        prediction.save(target, kind, background=background, hard=hard, clean_rim=clean_rim, classes=classes)

    sources: list[PictureLike] = list(plan)
    with (
        progress_bar(len(plan), progress) as bar,
        ThreadPoolExecutor(workers, thread_name_prefix="segzoo-encode") as encoders,
    ):
        waiting: deque[tuple[Path, Future[None]]] = deque()
        for source, outcome in zip(plan, predictor.stream(sources, workers=workers, errors="return")):
            if isinstance(outcome, Exception):
                report.failed[source] = outcome
                bar.update()
                continue
            waiting.append((source, encoders.submit(save, outcome, plan[source])))
            if len(waiting) > 2 * workers:  # results are large: no more of them than the encoders are busy with
                _note(report, plan, *waiting.popleft(), bar)
        while waiting:
            _note(report, plan, *waiting.popleft(), bar)
    return report


def _note(report: FolderReport, plan: dict[Path, Path], source: Path, saving: Future[None], bar: Any) -> None:
    """Wait for a result to be written, and write down how it went."""
    try:
        saving.result()
        report.written[source] = plan[source]
    except Exception as error:
        report.failed[source] = error
    bar.update()


def _plan(
    pictures: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], destination: Path, suffix: str, recursive: bool
) -> dict[Path, Path]:
    """Which file becomes which, decided before any is written."""
    if isinstance(pictures, (str, os.PathLike)):
        folder = Path(pictures)
        relative = pictures_in(folder, destination, recursive)
        if folder.resolve() == destination.resolve():
            raise ValueError(f"the results would lie among the pictures in {folder}: choose another folder")
        if not relative:
            hint = (
                "" if recursive or not any(p.is_dir() for p in folder.iterdir()) else "; recursive follows its folders"
            )
            raise ValueError(f"there is no picture in the folder {folder}{hint}")
        sources = [folder / path for path in relative]
    else:
        sources = list(dict.fromkeys(Path(path) for path in pictures))
        relative = [Path(path.name) for path in sources]
        if not relative:
            raise ValueError("the list of pictures is empty")
    stems = Counter(path.with_suffix("") for path in relative)
    targets = [
        destination / f"{path.with_suffix('') if stems[path.with_suffix('')] == 1 else path}{suffix}"
        for path in relative
    ]
    if twice := [target for target, count in Counter(targets).items() if count > 1]:
        raise ValueError(f"several pictures would all become {twice[0]}: give each folder a destination of its own")
    inputs = {path.resolve() for path in sources}
    if overwritten := [target for target in targets if target.resolve() in inputs]:
        raise ValueError(f"the result {overwritten[0]} would overwrite a picture: choose another folder")
    return dict(zip(sources, targets))
