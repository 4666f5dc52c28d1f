"""How good predictions are: files against masks, or a model on a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from torch import nn

from segzoo._maps import Map, read_ahead
from segzoo._pairs import Pair, Pairs, pair_files
from segzoo._progress import progress_bar
from segzoo.inference._evaluation_report import Evaluation, one_line
from segzoo.inference._scoring import SalientScorer, Scorer, SemanticScorer
from segzoo.inference.picture import PictureLike
from segzoo.inference.predictor import Predictor
from segzoo.inference.runtimes import FileModel

__all__ = ["Evaluation", "evaluate"]

_TOLERANCE = 2.0


def evaluate(
    predictions: str | os.PathLike[str],
    masks: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | nn.Module | FileModel | Predictor | None = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    ignore_index: int | Literal["auto"] | None = "auto",
    protocol: str = "pysod",
    normalize: bool | None = None,
    boundary: bool = False,
    tolerance: float = _TOLERANCE,
    resize: bool = False,
    recursive: bool = False,
    workers: int = 2,
    progress: bool = False,
) -> Evaluation:
    """Score a folder of predictions against a folder of masks, or a model on a folder of pictures.

    Files belong together by their paths in the folders without the ending. Pictures are read, predicted and scored one
    after the other, and none is kept. One that cannot be read or scored is noted and the rest goes on.

    Without ``num_classes`` predictions are grey maps of salient objects, 8 or 16 bit, scored by ``SaliencyMetrics``;
    with it they are label maps, whose values (or palette indices) are the classes, scored by ``SegmentationMetrics``. A
    model of several classes makes label maps by itself. With ``num_classes=1`` both may be 0/1 or grey.

    Args:
        predictions: A folder of predictions, or one; with a ``model``, of pictures.
        masks: A folder of masks, or one.
        model: A name, a ``.onnx`` file, a model (these in float32) or a ``Predictor``, to predict with. Salient objects
            are scored as ``Prediction.evaluation_map`` has them, or unstretched if ``normalize`` says so.
        num_classes: Of label maps. None: that of the model or of ``class_names``, else salient objects.
        class_names: Of label maps; the model's own by default.
        ignore_index: The label in the masks that does not count; ``"auto"``: none with one class, else 255.
        protocol: Of salient objects: ``"pysod"``, ``"paper"`` or ``"tutorial"``, see ``SaliencyMetrics``.
        normalize: Whether each prediction of a salient object is stretched to 0…1; None as the protocol has it.
        boundary: Whether to measure the rims, too, by ``BoundaryMetrics``: of each class, or of what is above 0.5 in
            the prediction, stretched if ``normalize``, and in the mask.
        tolerance: In pixels, of ``boundary``.
        resize: Whether predictions of another size than their mask are resized to it: grey maps bilinearly, labels by
            the nearest. Otherwise such a picture fails.
        recursive: Whether folders in the folders are followed.
        workers: Threads that read ahead.
        progress: Whether to show a bar on stderr, where that is a terminal.

    Returns:
        An `Evaluation`: ``results``, ``per_picture``, ``failed``, ``table()``, ``write_json(path)`` …

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If a name is twice in a folder, no name is in both, or an argument does not fit.

    Examples:
        >>> import tempfile, numpy as np
        >>> from PIL import Image
        >>> file = Path(tempfile.mkdtemp()) / "disc.png"
        >>> Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(file)
        >>> evaluate(file, file).results["mae"]
        0.0
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    # Before the model, whose weights may have to come from afar.
    found = pair_files(predictions, masks, recursive=recursive, what="prediction" if model is None else "picture")
    predictor = model if isinstance(model, Predictor) or model is None else _predictor_of(model)
    if predictor is not None:
        num_classes, class_names = _classes_of(predictor, num_classes, class_names)
    elif num_classes is None and class_names is not None:
        num_classes = len(class_names)
    if tolerance != _TOLERANCE and not boundary:
        raise ValueError("tolerance is of the rims' metrics: give boundary, too")
    scorer: Scorer
    if num_classes is None:
        if class_names is not None or ignore_index != "auto":
            raise ValueError("class_names and ignore_index are of label maps: give num_classes, too")
        scorer = SalientScorer(protocol, normalize, boundary, tolerance)
    else:
        if protocol != "pysod" or normalize is not None:
            raise ValueError("protocol and normalize are of salient objects, not of label maps with num_classes")
        scorer = SemanticScorer(num_classes, class_names, ignore_index, boundary, tolerance)
    evaluation = Evaluation(
        scorer.metric,
        scorer.boundary,
        unmatched_predictions=found.lonely_sources,
        unmatched_masks=found.lonely_masks,
    )
    name = _name_of(model)
    evaluation.settings = {
        "predictions": os.fspath(predictions),
        "masks": os.fspath(masks),
        "model": name,
        "scored": scorer.describe(name),
        **scorer.settings,
        "boundary": boundary,
        "tolerance": tolerance if boundary else None,
        "resize": resize,
        "recursive": recursive,
    }
    if predictor is not None:
        evaluation.settings |= {"device": str(predictor.device), "precision": str(predictor.dtype).split(".")[-1]}
        evaluation.settings |= {"backend": predictor.backend, "min_max": predictor.min_max}
        if predictor.postprocess is not None:
            how = getattr(predictor.postprocess, "__name__", type(predictor.postprocess).__name__)
            evaluation.settings["postprocess"] = how
        if not predictor.views.plain:
            evaluation.settings |= asdict(predictor.views)
    with progress_bar(len(found.pairs), progress) as bar:
        for pair, read in zip(found.pairs, _read(found, scorer, predictor, workers)):
            try:
                _score(evaluation, scorer, pair, read, resize)
            except _Failure as failure:
                evaluation.failed[failure.path] = _without_frames(failure.error)
            bar.update()
    return evaluation


class _Failure(Exception):
    """Why there is no score, and the file it is about."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(str(error))
        self.path, self.error = path, error


def _read(
    found: Pairs, scorer: Scorer, predictor: Predictor | None, workers: int
) -> Iterator[tuple[Map, Map] | Exception]:
    """Prediction and mask of each pair, or what went wrong."""

    def read_mask(pair: Pair) -> Map:
        return _of(pair.mask, scorer.read_mask)

    def read_both(pair: Pair) -> tuple[Map, Map]:
        return _of(pair.source, scorer.read_prediction), read_mask(pair)

    if predictor is None:
        yield from read_ahead(read_both, found.pairs, workers)
        return
    pictures: list[PictureLike] = [pair.source for pair in found.pairs]
    outcomes = predictor.stream(pictures, workers=workers, errors="return")
    for pair, outcome, mask in zip(found.pairs, outcomes, read_ahead(read_mask, found.pairs, workers)):
        if isinstance(outcome, Exception):
            yield _Failure(pair.source, outcome)
        elif isinstance(mask, Exception):
            yield mask
        else:
            yield scorer.from_model(outcome), mask


def _of(path: Path, read: Any) -> Map:
    try:
        values: Map = read(path)
        return values
    except Exception as error:
        raise _Failure(path, error) from error


def _score(evaluation: Evaluation, scorer: Scorer, pair: Pair, read: tuple[Map, Map] | Exception, resize: bool) -> None:
    if isinstance(read, Exception):
        raise read
    prediction, mask = read
    if prediction.shape != mask.shape:
        if not resize:
            sizes = [f"{values.shape[1]}×{values.shape[0]}" for values in read]
            raise _Failure(
                pair.source,
                ValueError(
                    f"{pair.source} is {sizes[0]} and its mask {pair.mask} {sizes[1]} (width × height): "
                    "resize makes predictions the size of their masks"
                ),
            )
        prediction = scorer.resized(prediction, mask.shape)
    try:
        row = scorer.score(prediction, mask)
    except (ValueError, TypeError, MemoryError) as error:
        named = ValueError(f"{pair.source} with mask {pair.mask}: {one_line(error)}")
        raise _Failure(pair.source, named) from error
    if prediction is not read[0]:
        evaluation.resized.append(pair.name)
    evaluation.per_picture[pair.name] = row


def _classes_of(
    predictor: Predictor, num_classes: int | None, class_names: Sequence[str] | None
) -> tuple[int | None, Sequence[str] | None]:
    """Number and names of the classes that a model's label maps have; no number for one of salient objects."""
    model = predictor.model
    if predictor.finds_instances:
        raise ValueError("a detector's objects are no classes: expected a model for salient objects or classes")
    if model.multilabel:
        raise ValueError("this model's classes overlap (multilabel), and a label map holds one class at a pixel")
    several = model.num_classes > 1
    if num_classes is not None and num_classes != model.num_classes:
        raise ValueError(f"num_classes is {num_classes}, this model has {model.num_classes}")
    if several and class_names is None:
        class_names = model.classes
    return (model.num_classes if several else num_classes), class_names


def _predictor_of(model: str | os.PathLike[str] | nn.Module | FileModel) -> Predictor:
    """In float32, as the figures are that others publish."""
    own = isinstance(model, FileModel) or getattr(model, "inference_dtype", None) is not None
    return Predictor(model, precision="auto" if own else "fp32")


def _name_of(model: str | os.PathLike[str] | nn.Module | FileModel | Predictor | None) -> str | None:
    """The name of the weights where they are published ones, else of the file or of the architecture's class."""
    if model is None or isinstance(model, (str, os.PathLike)):
        return None if model is None else os.fspath(model)
    network = model.model if isinstance(model, Predictor) else model
    record = getattr(network, "weights", None)
    if record is None:
        return network.name if isinstance(network, FileModel) else type(network).__name__
    return str(record.name)


def _without_frames(error: Exception) -> Exception:
    """The error and its causes without their tracebacks, which would keep pictures in memory."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
