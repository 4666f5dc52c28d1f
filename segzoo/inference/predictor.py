"""From pictures to masks and cut-outs in one call."""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, overload

import numpy as np
from numpy.typing import NDArray

from segzoo._errors import unknown_name
from segzoo.inference._views import Input, TestTime, parse_tta
from segzoo.inference._without_torch import preprocessed
from segzoo.inference.picture import Picture, PictureLike, read_picture
from segzoo.inference.prediction import Prediction, stretch
from segzoo.inference.runtimes import Backend, FileModel, backend_for, exported, is_onnx

if TYPE_CHECKING:
    from concurrent.futures import Future

    import torch
    from torch import Tensor, nn

    from segzoo.inference._devices import Precision

# torch, and what computes with it, is imported where it is needed: a plain look of an ONNX file is made without.

__all__ = ["Predictor"]

_Loaded: TypeAlias = tuple[Picture, Input]
_PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class Predictor:
    """A model made ready for pictures: preprocessing, device, batches, and masks at each picture's own size.

    Args:
        model: A name (``"u2net_lite"``, ``"u2net_lite.duts"``), ``"local-dir:PATH"`` or ``"hf-hub:org/repo"`` of a
            saved model, or a model of this library, which is copied and stays as it is. A detector
            (``mask_rcnn_resnet50_fpn``) gives an ``InstancePrediction`` for each picture. Or the path to a ``.onnx``
            file, or a ``FileModel``.
        backend: What runs it: ``"torch"``, ``"onnxruntime"`` or ``"openvino"``, with torch's float32 predictions. For
            the latter two a model that is no ``.onnx`` file yet is exported first, which takes seconds: ``segzoo
            export`` makes a file once. None: onnxruntime for a ``.onnx`` file, else torch.
        device: ``"auto"`` (a CUDA GPU, else Apple's, else the CPU) or a torch device, which must be there. Of other
            backends see ``FileModel``.
        precision: ``"fp32"``, ``"bf16"``, ``"fp16"`` or ``"auto"``: a narrow one where the record of the weights says
            that it was checked on a whole data set (``precision_ok``) and the device computes in it; else float32.
            Narrow ones move results a little: give ``"fp32"`` for figures that are to be compared.
        tta: What a prediction is the mean of, at test time: ``"flip"``, the picture and its mirror image;
            ``"multi-scale"``, both at eight scales from 0.5 to 2.2 (``multi_scale``'s), or at those you list, such as
            ``(0.75, 1.0, 1.25)``. Scales are of the size the model's preprocessing asks for, made from the picture's
            own pixels. None: one look.
        tile: Run the model over the picture at its own size in overlapping windows of so many pixels (one number, or
            height and width), by ``sliding_window``, instead of resizing it to the size the model was trained on: for
            large pictures whose details count.
        batch_size: How many pictures of a list or folder go through the model at once; or windows of one.
        min_max: Stretch each prediction to 0…1, as the published evaluation of U²-Net does (the record's ``protocol``).
            Off by default: a picture without any object would get one.
        postprocess: What becomes of each prediction before you get it, such as
            ``lambda p: p.refined("guided").tidied(largest=True)``.
        progress: Whether the windows of a ``tile`` show a bar on stderr, where that is a terminal.
        compile: See ``segzoo.inference.optimize_for_inference``; of ``backend="torch"``.
        tune_allocator: See there: faster on a CPU, for the whole process; of ``backend="torch"``.

    Raises:
        ValueError: For an unknown model, device, precision or tta, or a tile that is no size.

    Examples:
        >>> import numpy as np
        >>> predictor = Predictor("u2net_lite.duts")
        >>> prediction = predictor(np.zeros((60, 80, 3), np.uint8))
        >>> prediction.mask.shape, prediction.cutout().mode
        ((60, 80), 'RGBA')
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module | FileModel,
        *,
        backend: Backend | None = None,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        tta: TestTime = None,
        tile: int | tuple[int, int] | None = None,
        batch_size: int = 1,
        min_max: bool = False,
        postprocess: Callable[[Prediction], Prediction] | None = None,
        progress: bool = False,
        compile: bool = False,
        tune_allocator: bool = False,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
        if precision not in _PRECISIONS:
            raise unknown_name("precision", precision, _PRECISIONS)
        self.views = parse_tta(tta, tile)
        self.batch_size = batch_size
        self.min_max = min_max
        if postprocess is not None and not callable(postprocess):
            raise TypeError(f"postprocess is a function of a Prediction, got {postprocess!r}")
        self.postprocess = postprocess
        self.progress = progress
        self.backend = backend_for(model, backend)
        self.finds_instances = False
        self.device: torch.device | str
        self.dtype: torch.dtype | str
        self.model: Any  # a SegmentationModel, a detector or a FileModel, all with the attributes of the first
        if self.backend == "torch":
            self._run_in_torch(model, device, precision, compile=compile, tune_allocator=tune_allocator)
        elif compile or tune_allocator:
            raise ValueError(f"compile and tune_allocator are of backend 'torch', and {self.backend} runs this model")
        else:
            self._run_from_file(model, str(device), precision)

    def _run_in_torch(
        self,
        model: str | os.PathLike[str] | nn.Module | FileModel,
        device: str | torch.device,
        precision: Precision,
        **options: bool,
    ) -> None:
        import torch

        from segzoo.inference._devices import find_device
        from segzoo.inference.optimize import optimize_for_inference
        from segzoo.models.base import SegmentationModel
        from segzoo.registry import create_model

        self.device = find_device(device)
        loaded: Any = create_model(model) if isinstance(model, str) else model
        self.finds_instances = hasattr(loaded, "roi_heads") and hasattr(loaded, "score_threshold")
        if isinstance(loaded, SegmentationModel):
            own = loaded is not model  # nobody else has it
            self.model = optimize_for_inference(loaded, precision, device=self.device, in_place=own, **options)
            self.dtype = self.model.inference_dtype
        elif self.finds_instances:
            self.dtype = torch.float32
            if precision not in ("auto", "fp32") or self.min_max or not self.views.plain or options["compile"]:
                raise ValueError("a detector runs in float32, without min_max, tta, tile and compile")
            self.model = copy.deepcopy(loaded).eval().requires_grad_(False).to(self.device)
        else:
            raise TypeError(f"model is a name or a segzoo model, got {type(model).__name__}")

    def _run_from_file(self, model: Any, device: str, precision: Any) -> None:
        backend: Any = self.backend
        if isinstance(model, FileModel):
            if device not in ("auto", model.device) or precision != "auto":
                raise ValueError("device and precision are a FileModel's own: give them where it is made")
            self.model = model
        elif is_onnx(model):
            self.model = FileModel(model, backend, device=device, precision=precision)
        else:
            self.model = exported(model, backend, device=device, precision=precision)
        self.device, self.dtype = self.model.device, self.model.precision
        size = self.model.size
        if size is not None and (self.views.tile not in (None, size) or self.views.scales != (1.0,)):
            only = f"{self.model.name} takes {size[0]}×{size[1]} pixels only"
            raise ValueError(f"{only}: expected that as tile, and of tta 'flip' (dynamic=True exports it for any size)")

    @overload
    def __call__(self, pictures: list[PictureLike] | tuple[PictureLike, ...]) -> list[Prediction]: ...
    @overload
    def __call__(self, pictures: PictureLike) -> Prediction: ...

    def __call__(
        self, pictures: PictureLike | list[PictureLike] | tuple[PictureLike, ...]
    ) -> Prediction | list[Prediction]:
        """Predict one picture, or a list of them.

        Args:
            pictures: A path, an open file, a PIL image, an array ``[H, W]``, ``[H, W, 3]`` or ``[H, W, 4]``, or a
                tensor ``[H, W]`` or ``[C, H, W]``; or a list. Arrays and tensors are uint8, or floating point in 0…1.

        Returns:
            A ``Prediction``, or a list in the same order.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no picture, or broken.
        """
        if isinstance(pictures, (list, tuple)):
            return list(cast("Iterator[Prediction]", self.stream(pictures)))
        return self._finished(self._predict([self._load(pictures)])[0])

    def stream(
        self, pictures: Iterable[PictureLike], *, workers: int = 2, errors: Literal["raise", "return"] = "raise"
    ) -> Iterator[Prediction | Exception]:
        """Predict many pictures, decoding ahead in threads; holds a few in memory at a time.

        Args:
            pictures: Any iterable, endless ones too; read a few ahead.
            workers: Threads that decode.
            errors: With ``"return"`` a bad picture gives its exception in its place, and the rest goes on.

        Yields:
            A ``Prediction`` for each picture, in order.

        Examples:
            >>> import numpy as np
            >>> pictures = (np.zeros((20, 30 + i, 3), np.uint8) for i in range(3))
            >>> [p.mask.shape for p in Predictor("u2net_lite").stream(pictures)]
            [(20, 30), (20, 31), (20, 32)]
        """
        if errors not in ("raise", "return"):
            raise unknown_name("value of errors", errors, ["raise", "return"])
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        return self._stream(iter(pictures), workers, errors)  # a generator would complain at its first next()

    def _stream(
        self, source: Iterator[PictureLike], workers: int, errors: Literal["raise", "return"]
    ) -> Iterator[Prediction | Exception]:
        from concurrent.futures import ThreadPoolExecutor

        at_once = self.batch_size if self.views.tile is None else 1  # a picture that needs windows is enough
        waiting: deque[Future[_Loaded]] = deque()
        pool = ThreadPoolExecutor(workers, thread_name_prefix="segzoo-decode")
        try:
            exhausted = False
            while True:
                while not exhausted and len(waiting) < at_once + workers:
                    try:
                        waiting.append(pool.submit(self._load, next(source)))
                    except StopIteration:
                        exhausted = True
                if not waiting:
                    return
                batch = [waiting.popleft() for _ in range(min(at_once, len(waiting)))]
                failures = [future.exception() for future in batch]
                if errors == "raise" and any(failures):
                    raise next(failure for failure in failures if failure)
                predictions = iter(self._predict([f.result() for f, failure in zip(batch, failures) if not failure]))
                for failure in failures:
                    if failure is None:
                        yield self._outcome(next(predictions), errors)
                    elif isinstance(failure, Exception):
                        yield failure
                    else:
                        raise failure
        finally:
            pool.shutdown(cancel_futures=True)

    @property
    def shares_pixels(self) -> bool:
        """Whether several classes share the picture, one at each pixel, instead of masks of their own."""
        return not self.finds_instances and self.model.num_classes > 1 and not self.model.multilabel

    def _load(self, source: PictureLike) -> _Loaded:
        enough = self.views.largest(self.model.preprocessing)
        picture = read_picture(source, in_channels=self.model.in_channels, at_least=enough)
        if self.views.plain and isinstance(self.model, FileModel):
            return picture, Input(*preprocessed(picture, self.model.preprocessing))
        return picture, self.views.first(picture, self.model.preprocessing)

    def _predict(self, loaded: Sequence[_Loaded]) -> list[Prediction]:
        """Predictions of preprocessed pictures: one batch where all have one size, else one by one."""
        if not loaded:  # all of them were bad
            return []
        return self._find_instances(loaded) if self.finds_instances else self._find_classes(loaded)

    def _outcome(self, prediction: Prediction, errors: Literal["raise", "return"]) -> Prediction | Exception:
        """The prediction, postprocessed, or in its place what went wrong with that."""
        try:
            return self._finished(prediction)
        except Exception as error:
            if errors == "raise":
                raise
            return error

    def _finished(self, prediction: Prediction) -> Prediction:
        if self.postprocess is None:
            return prediction
        finished = self.postprocess(prediction)
        if not isinstance(finished, Prediction):
            raise TypeError(f"postprocess must return a Prediction, got {type(finished).__name__}")
        return finished

    def _find_classes(self, loaded: Sequence[_Loaded]) -> list[Prediction]:
        one_size = len({self.views.sizes(picture, self.model.preprocessing) for picture, _ in loaded}) == 1
        batches = [loaded] if one_size else [[one] for one in loaded]
        scores = [score for batch in batches for score in self._scores(batch)]
        model = self.model
        return [
            Prediction(
                picture,
                stretch(score) if self.min_max else score,
                threshold=model.threshold,
                classes=model.classes,
                multilabel=model.multilabel,
            )
            for (picture, _), score in zip(loaded, scores)
        ]

    def _find_instances(self, loaded: Sequence[_Loaded]) -> list[Prediction]:
        import torch

        from segzoo.inference.instances import InstancePrediction

        model = self.model
        with torch.inference_mode():
            found = model([first.tensor.to(self.device) for _, first in loaded])
        return [
            InstancePrediction(
                picture,
                detections,
                score_threshold=model.score_threshold,
                threshold=model.threshold,
                classes=model.classes,
            )
            for (picture, _), detections in zip(loaded, found)
        ]

    def _scores(self, batch: Sequence[_Loaded]) -> Tensor | NDArray[np.float32]:
        """Probabilities, float32 ``[N, C, h, w]`` on the CPU, of pictures whose inputs have the same sizes."""
        inputs: list[Any] = [first.x for _, first in batch]
        if self.views.plain and isinstance(self.model, FileModel):
            return self.scores(np.stack(inputs))
        import torch

        with torch.inference_mode():
            if self.views.plain:
                return self.scores(torch.stack(inputs))
            found = self.views.probabilities(
                self.model, batch, self._to_model, batch_size=self.batch_size, progress=self.progress
            )
            return found.cpu()

    @overload
    def scores(self, x: Tensor) -> Tensor: ...
    @overload
    def scores(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def scores(self, x: Tensor | NDArray[np.float32]) -> Tensor | NDArray[np.float32]:
        """Probabilities, float32 ``[N, C, h, w]`` on the CPU, of preprocessed pictures ``[N, in_channels, h, w]``.

        One look at each, whatever ``tta`` and ``tile`` are. An array is for a model in a file, and gives an array.
        """
        if isinstance(self.model, FileModel):
            return self.model.predict(x)
        import torch

        with torch.inference_mode():
            probabilities: Tensor = self.model.probabilities(self.model(self._to_model(cast("Tensor", x))))
            return probabilities.cpu()

    def _to_model(self, x: Tensor) -> Tensor:
        if isinstance(self.model, FileModel):
            return x
        import torch

        kind = cast("torch.dtype", self.dtype)
        return x.to(device=self.device, dtype=kind, memory_format=torch.channels_last)
