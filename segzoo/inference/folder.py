"""A folder of pictures in, a folder of results out."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from segzoo.inference.picture import PictureLike, image_format, picture_suffixes
from segzoo.inference.predictor import Kind, Predictor

__all__ = ["FolderReport", "predict_folder"]


@dataclass
class FolderReport:
    """What became of the pictures of a folder.

    Args:
        written: Input to output, in order.
        failed: Input to the reason why there is no output.
    """

    written: dict[Path, Path] = field(default_factory=dict)
    failed: dict[Path, Exception] = field(default_factory=dict)


def predict_folder(
    predictor: Predictor,
    pictures: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    destination: str | os.PathLike[str],
    kind: Kind = "mask",
    *,
    suffix: str = ".png",
    recursive: bool = False,
    workers: int = 2,
    progress: bool = False,
    background: str | None = None,
    hard: bool = False,
    classes: Sequence[int | str] | None = None,
) -> FolderReport:
    """Predict every picture of a folder; a bad one is noted and skipped.

    Pictures are decoded and results encoded in threads, while the model runs batches of ``predictor.batch_size``.

    Args:
        predictor: What to predict with.
        pictures: A folder, or a list of picture files.
        destination: A folder, made if it is not there. ``photo.jpg`` becomes ``photo.png`` in it; where two pictures
            would share a name, ``photo.jpg.png``.
        kind: See :meth:`Prediction.render`.
        suffix: Of the results, which names their format.
        recursive: Whether folders in the folder are followed; the results lie in the same folders.
        workers: Threads to decode with, and as many to encode.
        progress: Whether to show a bar on stderr.
        background: See :meth:`Prediction.cutout`.
        hard: See :meth:`Prediction.cutout`.
        classes: See :meth:`Prediction.cutout`.

    Returns:
        What was written and what failed.

    Raises:
        ValueError: If there is no picture, or a result would overwrite one of the pictures.
        OSError: If the folder cannot be read or the destination cannot be made.
    """
    image_format(f"a{suffix}")
    destination = Path(destination)
    paths = _plan(pictures, destination, suffix, recursive)
    destination.mkdir(parents=True, exist_ok=True)

    report = FolderReport()
    encoders = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="segzoo-encode")
    encoding: deque[tuple[Path, Path, Future[None]]] = deque()

    def settle(most_waiting: int) -> Iterator[None]:
        while len(encoding) > most_waiting:
            source, target, future = encoding.popleft()
            if (error := future.exception()) is None:
                report.written[source] = target
            elif isinstance(error, Exception):
                report.failed[source] = error
            else:
                raise error
            yield

    sources: list[PictureLike] = list(paths)
    with _bar(len(paths), progress) as bar, encoders:
        outcomes = predictor.stream(sources, workers=workers, errors="return")
        for (source, target), outcome in zip(paths.items(), outcomes):
            if isinstance(outcome, Exception):
                report.failed[source] = outcome
                bar.update()
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            save = encoders.submit(outcome.save, target, kind, background=background, hard=hard, classes=classes)
            encoding.append((source, target, save))
            for _ in settle(most_waiting=2 * max(workers, 1)):
                bar.update()
        for _ in settle(most_waiting=0):
            bar.update()
    return report


def _plan(
    pictures: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], destination: Path, suffix: str, recursive: bool
) -> dict[Path, Path]:
    """Which file becomes which, decided before any is written."""
    if isinstance(pictures, (str, os.PathLike)):
        folder = Path(pictures)
        relative = _pictures_in(folder, destination, recursive)
        if not relative:
            raise ValueError(f"there is no picture in the folder {folder}")
        sources = [folder / path for path in relative]
    else:
        sources = [Path(path) for path in pictures]
        relative = [Path(path.name) for path in sources]
        if not relative:
            raise ValueError("the list of pictures is empty")
    stems = Counter(path.with_suffix("") for path in relative)
    targets = [
        destination / (path.with_suffix(suffix) if stems[path.with_suffix("")] == 1 else f"{path}{suffix}")
        for path in relative
    ]
    if twice := [target for target, count in Counter(targets).items() if count > 1]:
        raise ValueError(
            f"several pictures of one name would all become {twice[0]}: use one destination for each folder"
        )
    inputs = {path.resolve() for path in sources}
    if overwritten := [target for target in targets if target.resolve() in inputs]:
        raise ValueError(f"the result {overwritten[0]} would overwrite a picture: choose another folder")
    return dict(zip(sources, targets))


def _pictures_in(folder: Path, destination: Path, recursive: bool) -> list[Path]:
    """Picture files by their endings, relative to the folder, sorted; hidden files and the results are left out."""
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}")
    endings = picture_suffixes()
    found: list[Path] = []
    results = destination.resolve()

    def refuse(error: OSError) -> None:
        raise PermissionError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [f for f in folders if not f.startswith(".") and Path(place, f).resolve() != results]
        found += [
            Path(place, f).relative_to(folder)
            for f in files
            if not f.startswith(".") and Path(f).suffix.lower() in endings
        ]
        if not recursive:
            break
    return sorted(found)


def _bar(total: int, show: bool):  # type: ignore[no-untyped-def]
    from tqdm import tqdm

    return tqdm(total=total, unit=" pictures", disable=not show)
