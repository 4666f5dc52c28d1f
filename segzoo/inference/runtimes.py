"""Models in ONNX files, which onnxruntime or OpenVINO run, for ``Predictor``: as models of this library, but faster."""

from __future__ import annotations

import importlib
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from segzoo._errors import unknown_name
from segzoo.inference._file_facts import OUTPUTS, Known, published, said_of
from segzoo.inference._sessions import RUNTIMES, Session, Shape, check_runtime, open_session
from segzoo.inference._without_torch import to_probabilities
from segzoo.weights.preprocessing import Preprocessing, check_preprocessing

if TYPE_CHECKING:
    from torch import Tensor, nn

    from segzoo.weights.record import Weights

__all__ = ["BACKENDS", "Backend", "FileModel", "backend_for", "exported", "is_onnx"]

Backend = Literal["torch", "onnxruntime", "openvino"]
BACKENDS: tuple[Backend, ...] = ("torch", "onnxruntime", "openvino")
_SMALLEST = np.float32(1e-30)  # a probability of 0 has a logit, too

logger = logging.getLogger(__name__)


class FileModel:
    """A model in an ONNX file, run by onnxruntime or OpenVINO.

    ``Predictor("file.onnx")`` makes one. What pictures go through before, classes and threshold are in the files that
    ``segzoo.export`` writes; the published files of the catalogue (``u2netp.onnx`` …) are known by their sha256. Of any
    other say it here, and give the model to ``Predictor``.

    ``predict`` needs no torch where it is given an array. Calling it, as ``model(x)``, gives logits as other models do.

    Args:
        file: Its path, or its content.
        backend: ``"onnxruntime"`` or ``"openvino"``.
        device: ``"auto"`` (onnxruntime: a CUDA GPU where it can use one, else the CPU; OpenVINO: the CPU), ``"cpu"``,
            ``"cuda"``, ``"cuda:1"``, or one that OpenVINO lists.
        precision: ``"auto"`` and ``"fp32"``: as the file is. OpenVINO has ``"bf16"`` and ``"fp16"``, too, for all of
            the network, where the processor has them.
        preprocessing: What pictures go through before. None: as the file says.
        output: Whether the file gives ``"logits"`` or ``"probabilities"``. None: as the file says.
        classes: Their names. None: as the file says.
        multilabel: Whether they may overlap. None: as the file says.
        threshold: Of the foreground's probability. None: as the file says, else 0.5.
        name: Of the file, for messages. None: its path.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        size: Height and width of a file that takes one size only, which pictures are then resized to; else None.
        batch: How many pictures it takes at once, where that is fixed; further ones go in turns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no ONNX file, broken, or says too little of itself; or there is no such device.
        ImportError: If the runtime is not installed.

    Examples:
        >>> model = FileModel("u2net_lite.onnx")  # doctest: +SKIP
        >>> model.predict(np.zeros((1, 3, 320, 320), np.float32)).shape  # doctest: +SKIP
        (1, 1, 320, 320)
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | bytes,
        backend: Literal["onnxruntime", "openvino"] = "onnxruntime",
        *,
        device: str = "auto",
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        preprocessing: Preprocessing | None = None,
        output: Literal["logits", "probabilities"] | None = None,
        classes: tuple[str, ...] | None = None,
        multilabel: bool | None = None,
        threshold: float | None = None,
        name: str | None = None,
    ) -> None:
        if backend not in RUNTIMES:
            raise unknown_name("backend of an ONNX file", backend, RUNTIMES)
        if output not in (None, *OUTPUTS):
            raise unknown_name("output", output, OUTPUTS)
        self._arguments = (
            file,
            backend,
            device,
            precision,
            preprocessing,
            output,
            classes,
            multilabel,
            threshold,
            name,
        )
        source = file if isinstance(file, bytes) else _existing(file)
        self.name = name or (str(source) if isinstance(source, Path) else "the ONNX file")
        self.backend = backend
        self._session: Session = open_session(source, backend, name=self.name, device=device, precision=precision)
        self.device = self._session.device
        self.precision = {"bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32")
        known = said_of(self._session.metadata, self.name) or published(source)
        self._weights = known.weights
        self.output = output or known.output
        self.multilabel = known.multilabel if multilabel is None else multilabel
        self.threshold = known.threshold if threshold is None else threshold
        self._take_shapes(self._session.input, self._session.output, known)
        names = known.classes if classes is None else tuple(classes)
        self.classes = names if classes is not None or len(names or ()) == self.num_classes else None
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"classes are {len(self.classes)} names, and {self.name} has {self.num_classes} classes")
        rule = preprocessing or known.preprocessing
        if rule is None or self.output is None:
            missing = [n for n, v in (("preprocessing", rule), ("output", self.output)) if v is None]
            raise ValueError(
                f"{self.name} does not say its {' and '.join(missing)}, as files of segzoo.export do: "
                f"segzoo.inference.FileModel takes it with {', '.join(f'{n}=…' for n in missing)}"
            )
        rule = rule.for_channels(self.in_channels)
        check_preprocessing(rule, self.in_channels)
        self.preprocessing = rule if self.size is None else replace(rule, size=self.size)

    def _take_shapes(self, taken: Shape, given: Shape, known: Known) -> None:
        if len(taken) != 4 or len(given) not in (0, 4):
            raise ValueError(f"{self.name} maps {_shown(taken)} to {_shown(given)}, expected [N, C, H, W] to the same")
        self.batch, channels, height, width = taken
        said = given[1] if given else None
        classes = known.num_classes or said
        if channels is None or classes is None:
            raise ValueError(f"{self.name} leaves the number of its channels or classes free, expected numbers")
        if said not in (None, classes):
            raise ValueError(f"{self.name} says {classes} classes, and has {said} channels")
        self.in_channels, self.num_classes = channels, classes
        self.size = None if height is None or width is None else (height, width)
        if self.size is None and (height, width) != (None, None):
            raise ValueError(f"{self.name} takes {_shown(taken)}, expected a height and a width that are free or fixed")

    @property
    def weights(self) -> Weights | None:
        """The record of the checkpoint that was exported, where it is a published one; else None."""
        from segzoo.weights.catalog import get_weights

        try:
            return get_weights(self._weights)
        except ValueError:
            return None

    def __repr__(self) -> str:
        return f"FileModel({self.name!r}, {self.backend!r}, device={self.device!r})"

    def __reduce__(self) -> Any:  # a session cannot be pickled: it is opened again
        return _reopened, self._arguments, {"preprocessing": self.preprocessing, "threshold": self.threshold}

    @overload
    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
    @overload
    def predict(self, x: Tensor) -> Tensor: ...

    def predict(self, x: NDArray[np.float32] | Tensor) -> NDArray[np.float32] | Tensor:
        """Probabilities ``[N, num_classes, h, w]``, float32, of normalised pictures ``[N, in_channels, H, W]``.

        Args:
            x: An array, which gives an array, or a tensor, which gives a tensor on the CPU.

        Raises:
            ValueError: If the file takes no such pictures.
        """
        if not isinstance(x, np.ndarray):
            import torch

            return torch.from_numpy(self.predict(_array(x)))
        found = self._run(x)
        return found if self.output == "probabilities" else to_probabilities(found, self.multilabel)

    def __call__(self, x: Tensor) -> Tensor:
        """Logits ``[N, num_classes, h, w]``, as another model gives them; made of probabilities where those come."""
        import torch

        found = torch.from_numpy(self._run(_array(x)))
        if self.output == "logits":
            return found
        if self.num_classes == 1 or self.multilabel:
            return (found.clamp_min(float(_SMALLEST)) / (1 - found).clamp_min(2.0**-24)).log()
        return found.clamp_min(float(_SMALLEST)).log()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits ``[N, C, H, W]`` to float32 probabilities: sigmoid for one class or ``multilabel``, softmax else."""
        logits = logits.float()
        return logits.sigmoid() if self.num_classes == 1 or self.multilabel else logits.softmax(1)

    def _run(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the file gives for any number of pictures."""
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise ValueError(f"{self.name} takes [N, {self.in_channels}, H, W] with H, W ≥ 1, got {list(x.shape)}")
        if self.size is not None and x.shape[2:] != self.size:
            taken, got = (f"{height}×{width}" for height, width in (self.size, x.shape[2:]))
            raise ValueError(f"{self.name} takes {taken} pixels only, got {got}")
        x = np.require(x, np.float32, ["C"])
        if not len(x):
            return np.zeros((0, self.num_classes, *x.shape[2:]), np.float32)
        at_once = self.batch or len(x)
        parts = [self._run_some(x[i : i + at_once], at_once) for i in range(0, len(x), at_once)]
        found = np.concatenate(parts) if len(parts) != 1 else parts[0]
        if found.shape[:2] != (len(x), self.num_classes) or found.ndim != 4:
            expected = f"[{len(x)}, {self.num_classes}, h, w]"
            raise ValueError(f"{self.name} gave {list(found.shape)}, expected {expected}")
        if self.output == "probabilities" and not (found.min() > -1e-3 and found.max() < 1.001):
            raise ValueError(
                f"{self.name} gave {found.min():.3g} to {found.max():.3g}: these are logits, no probabilities"
            )
        return found

    def _run_some(self, x: NDArray[np.float32], at_once: int) -> NDArray[np.float32]:
        missing = at_once - len(x)
        if not missing:
            return self._session(x)
        return self._session(np.concatenate([x, np.zeros((missing, *x.shape[1:]), np.float32)]))[: len(x)]


def is_onnx(model: object) -> bool:
    """Whether a model is meant as the path to an ONNX file.

    Examples:
        >>> is_onnx("a/b.onnx"), is_onnx("u2net_lite.duts"), is_onnx("local-dir:my.onnx")
        (True, False, False)
    """
    if not isinstance(model, (str, os.PathLike)):
        return False
    path = os.fspath(model)
    return isinstance(path, str) and path.lower().endswith(".onnx") and not path.startswith(("local-dir:", "hf-hub:"))


def backend_for(model: object, backend: str | None) -> Backend:
    """What runs a model: what was asked for, or onnxruntime for an ONNX file and torch for others.

    Raises:
        ValueError: For an unknown backend, or one that does not take the model.

    Examples:
        >>> backend_for("u2net_lite", None), backend_for("u2net_lite.onnx", None)
        ('torch', 'onnxruntime')
    """
    if backend is not None and backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    if isinstance(model, FileModel):
        if backend not in (None, model.backend):
            raise ValueError(f"backend is {backend!r}, and the model runs in {model.backend} already")
        return model.backend
    if not is_onnx(model):
        return "torch" if backend is None else backend  # type: ignore[return-value]
    if backend == "torch":
        raise ValueError(
            f"torch does not run {model}: expected backend 'onnxruntime' or 'openvino' (or the model that its weights "
            f"are of, as segzoo.u2net_lite(weights={str(model)!r}))"
        )
    return "onnxruntime" if backend is None else backend  # type: ignore[return-value]


def exported(
    model: str | nn.Module,
    backend: Literal["onnxruntime", "openvino"],
    *,
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
) -> FileModel:
    """A model by name, or one of this library, exported into memory and opened by a runtime.

    Raises:
        ImportError: Without what exporting takes (``pip install segzoo[export]``), or the runtime.
        ValueError: For an unknown name.
        TypeError: For a model that cannot be exported.
    """
    import tempfile
    import time

    check_runtime(backend, device, precision)  # now, not after the export
    started = time.monotonic()
    export = importlib.import_module("segzoo.export")  # late: it imports from this package
    name = model if isinstance(model, str) else type(model).__name__
    if hasattr(model, "roi_heads") or name.startswith("mask_rcnn"):
        raise ValueError(f"{name} finds instances, which run in backend 'torch' only")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export.to_onnx(model, path)
        content = path.read_bytes()
    file = "model.onnx" if ":" in str(model) else f"{name}.onnx"
    keep = f"segzoo export {model} {file}" if isinstance(model, str) else "segzoo.export.to_onnx"
    seconds = time.monotonic() - started
    logger.warning("exported %s for %s in %.0f s; %s keeps the file for the next time", name, backend, seconds, keep)
    return FileModel(content, backend, device=device, precision=precision, name=f"{name}, exported,")


def _reopened(*arguments: Any) -> FileModel:
    names = ("device", "precision", "preprocessing", "output", "classes", "multilabel", "threshold", "name")
    return FileModel(*arguments[:2], **dict(zip(names, arguments[2:])))


def _existing(file: str | os.PathLike[str]) -> Path:
    path = Path(file)
    if path.is_dir():
        raise ValueError(f"{file} is a folder, expected an ONNX file")
    if not path.exists():
        raise FileNotFoundError(f"there is no ONNX file {file}")
    return path


def _array(x: Tensor) -> NDArray[np.float32]:
    values: NDArray[np.float32] = x.detach().float().cpu().contiguous().numpy()
    return values


def _shown(shape: Shape) -> str:
    return "[" + ", ".join("?" if length is None else str(length) for length in shape) + "]"
