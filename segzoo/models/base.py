"""What every model here has in common: the forward contract, predict(), and how weights come in.

How they go out again is in ``_pretrained.py``: ``save_pretrained``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segzoo._errors import caller_level
from segzoo.encoders.base import Encoder
from segzoo.layers._sizes import fit
from segzoo.layers.norm import Norm
from segzoo.models._pretrained import Pretrained, origin_of
from segzoo.ops import resize_to
from segzoo.weights.adapt import adapt_state_dict, refuse_misfits
from segzoo.weights.calibrate import has_folded_norms
from segzoo.weights.convert import StateDict
from segzoo.weights.folder import Checkpoint
from segzoo.weights.hub import Access
from segzoo.weights.record import Preprocessing, Weights
from segzoo.weights.resolve import read_checkpoint
from segzoo.weights.saved import SavedModel

__all__ = ["EncoderModel", "SegmentationModel", "build_model", "check_positive", "evaluating"]

Model = TypeVar("Model", bound="SegmentationModel")


def check_positive(**arguments: object) -> None:
    """Raise ValueError for the first argument that is no positive int.

    Examples:
        >>> check_positive(num_classes=0)
        Traceback (most recent call last):
        ValueError: num_classes must be a positive int, got 0
    """
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}")


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Eval mode inside the block; then every module has the mode again that it had. A plain function has none.

    Examples:
        >>> model = nn.Dropout()
        >>> with evaluating(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    try:
        if isinstance(model, nn.Module):
            try:
                model.eval()
            except NotImplementedError:  # an exported program, or what holds one, refuses: its mode is in its code
                for module, _ in modes:
                    module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


class SegmentationModel(Pretrained, nn.Module):
    """A network from pictures to one map of logits a class.

    ``model(x)`` takes a normalised float tensor ``[N, in_channels, H, W]``, any H, W ≥ 1, and returns logits
    ``[N, num_classes, H, W]`` in eval mode. In train mode a model with side outputs returns a list of such tensors, the
    main output first. One class is one channel.

    Args:
        num_classes: Output channels.
        in_channels: Input channels.
        multilabel: Whether classes may overlap: probabilities are then a sigmoid each, not a softmax.

    Attributes:
        weights: The record of the checkpoint that was loaded, or None.
        preprocessing: What a picture goes through before; assign another where yours was trained otherwise.
        threshold: Of the foreground's probability, for masks of one class.
        classes: Names of the classes, or None.
    """

    heads: ClassVar[tuple[str, ...]]  # prefixes of the keys whose shapes depend on num_classes
    optional: ClassVar[tuple[str, ...]] = ()  # prefixes of parts that a checkpoint or a model may lack: auxiliary heads
    stem: str  # key of the first convolution's weight
    default_num_classes: ClassVar[int]
    default_preprocessing: ClassVar[Preprocessing] = Preprocessing()

    def __init__(self, num_classes: int, in_channels: int, *, multilabel: bool = False) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, in_channels=in_channels)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.multilabel = multilabel
        self.weights: Weights | None = None
        self.preprocessing = self.default_preprocessing.for_channels(in_channels)
        self.threshold = 0.5
        self.classes: tuple[str, ...] | None = None
        self._warned = False
        self._published: tuple[float, float] | None = None  # the fingerprint of a checkpoint that came in unchanged
        self.inference_dtype: torch.dtype | None = None  # what optimize_for_inference made it, once it has

    def stems(self) -> list[str]:
        """The keys of the weights of all convolutions that see the picture."""
        return [self.stem]

    @classmethod
    def convert(cls, state: Mapping[str, Tensor]) -> StateDict:
        """Other people's keys for this architecture in ours; a state dict in our keys comes back as it is."""
        return dict(state)

    @classmethod
    def implied(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments that other people's checkpoint of this architecture was trained with; used where they are None."""
        return {}

    def fuse_for_inference(self) -> None:
        """Make eval mode faster in place where the architecture knows how, for ``optimize_for_inference``.

        Outputs agree but for rounding; state-dict keys stay. The model can no longer be trained.
        """

    def checked_precisions(self) -> tuple[str, ...]:
        """The precisions that the weights were checked in, as long as they are the published ones; of others none."""
        if self.weights is None or self._published is None or self._published != _fingerprint(self):
            return ()
        return self.weights.precision_ok

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError or TypeError unless ``x`` is a float tensor ``[N, in_channels, H, W]``."""
        if not isinstance(x, Tensor):
            raise TypeError(
                f"the model takes a tensor [N, {self.in_channels}, H, W], got {type(x).__name__}; "
                "segzoo.Predictor takes pictures"
            )
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] == 0 or x.shape[3] == 0:
            raise ValueError(f"the model takes [N, {self.in_channels}, H, W] with H, W ≥ 1, got {list(x.shape)}")
        if not x.is_floating_point():
            raise TypeError(f"the model takes normalised floating point values, got {x.dtype}")

    def train(self: Model, mode: bool = True) -> Model:
        """Train mode, or eval mode; warns once of a checkpoint whose norms were folded, which training would ruin."""
        if mode and not self._warned and has_folded_norms(self):
            self._warned = True
            warnings.warn(
                "this model's norms were folded into its convolutions by its publisher, and training would ruin it: "
                "segzoo.weights.recalibrate(model, pictures) first, with some dozens of your pictures",
                UserWarning,
                stacklevel=caller_level(),
            )
        return super().train(mode)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits ``[N, C, H, W]`` to float32 probabilities: sigmoid for one class or ``multilabel``, softmax else."""
        logits = logits.float()
        return logits.sigmoid() if self.num_classes == 1 or self.multilabel else logits.softmax(1)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Probabilities ``[N, C, H, W]`` in float32, without gradients; every module's mode stays as it was.

        Args:
            x: Normalised pictures ``[N, in_channels, H, W]``.

        Examples:
            >>> from segzoo import u2net_lite
            >>> u2net_lite().predict(torch.zeros(1, 3, 64, 48)).shape
            torch.Size([1, 1, 64, 48])
        """
        with evaluating(self):
            return self.probabilities(self(x))


class EncoderModel(SegmentationModel):
    """A model that is an encoder and what reads its pyramid.

    A subclass sets ``self.encoder`` and writes ``decode``; any H × W is then taken care of: inputs that are too small
    for the encoder are padded, the logits resized to the input and cropped.

    Attributes:
        align_corners: Of the last resizing: see ``segzoo.ops.resize_to``.
    """

    encoder: Encoder
    align_corners: bool = False

    def stems(self) -> list[str]:
        """The keys of the weights of all convolutions that see the picture."""
        return [f"encoder.{key}" for key in self.encoder.stems()]

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's maps that ``decode`` takes, the finest first."""
        maps: list[Tensor] = self.encoder(x)
        return maps

    def decode(self, features: list[Tensor], x: Tensor) -> list[Tensor]:
        """Logits of any size from the encoder's maps: the main output, then in train mode the auxiliary ones."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """``[N, in_channels, H, W]`` to logits ``[N, num_classes, H, W]``; in train mode, with side outputs, a list."""
        self.check_input(x)
        padded = self.encoder.pad(x)
        logits = self.decode(self.encode(padded), padded)
        outputs = [self._cropped(resize_to(y, padded, align_corners=self.align_corners), x) for y in logits]
        return outputs if len(outputs) > 1 else outputs[0]

    def _cropped(self, y: Tensor, x: Tensor) -> Tensor:
        """Without what ``Encoder.pad`` added."""
        if self.encoder.min_size == self.encoder.size_multiple == 1:
            return y
        below, right = (size - padded for size, padded in zip(x.shape[-2:], y.shape[-2:]))
        # Negative padding is a crop of which an exported program does not ask whether there was anything to crop.
        return F.pad(y, (0, right, 0, below))


def build_model(
    cls: type[Model],
    architecture: str,
    weights: str | os.PathLike[str] | Checkpoint | None,
    *,
    num_classes: int | None,
    in_channels: int,
    norm: Norm,
    progress: bool,
    **arguments: Any,
) -> Model:
    """What every factory ends in: the model, with the weights its user named, fitted to what the user changed.

    Args:
        cls: The model's class.
        architecture: The factory's name.
        weights: A tag of its own (``"duts"``), ``"architecture.tag"``, a path to a ``.safetensors``, ``.pth``, ``.pt``
            or ``.onnx`` file, or None for random initialisation. Of ``"local-dir:PATH"`` and ``"hf-hub:org/repo"`` the
            registry makes a checkpoint.
        num_classes: None means the checkpoint's, or the architecture's default without one.
        in_channels: Another number than the checkpoint's adapts the first convolution.
        norm: Another norm than the checkpoint's keeps γ and β and warns.
        progress: Whether a download shows a bar.
        **arguments: The class's further arguments.

    Returns:
        The model, in train mode as any new module; in eval mode where its norms are folded.

    Raises:
        ValueError: For unknown weights, or a checkpoint that does not fit.
    """

    def make(classes: int, **more: Any) -> Model:
        model = cls(num_classes=classes, in_channels=in_channels, **{"norm": norm, **arguments, **more})
        if isinstance(weights, Checkpoint) and weights.saved is not None and weights.saved.pruned:
            _prune_as(model, weights.saved, weights.state, {"norm": norm, **arguments, **more})
        return model

    if weights is None:
        model = make(cls.default_num_classes if num_classes is None else num_classes)
        if arguments.get("encoder_weights") is not None and arguments.get("encoder", "") is not None:
            model.started_from = _encoder_origin(arguments["encoder_weights"])
        return model
    if not isinstance(weights, Checkpoint):
        weights = read_checkpoint(architecture, weights, access=Access(progress=progress))
    record, state = weights.record, weights.state
    more = {name: value for name, value in cls.implied(state).items() if arguments.get(name) is None}
    if "encoder_weights" in arguments:
        more["encoder_weights"] = None  # a whole checkpoint brings its backbone: none is fetched first
    state = cls.convert(state)
    published = record.num_classes if record else _classes_in(state, cls)
    classes = published if num_classes is None else num_classes
    own_encoder = isinstance(arguments.get("encoder"), nn.Module)
    exact = None if own_encoder else _made_of(state, lambda: make(classes, **more))
    model = exact or make(classes, **more)
    if exact is None:
        if weights.saved is not None and _as_saved(weights.saved, num_classes, in_channels, norm):
            saved, target = (_without_counters(values) for values in (state, model.state_dict()))
            refuse_misfits(saved, target, f"{weights.origin}, as its config.json describes it,")
        fitted = adapt_state_dict(
            state, model.state_dict(), heads=cls.heads, stem=model.stems(), optional=cls.optional, origin=weights.origin
        )
        model.load_state_dict(fitted)
    model.implied_arguments = more
    model.started_from = origin_of(weights)
    if record is not None:
        model.weights = record
        unchanged = model.num_classes == record.num_classes and in_channels == record.in_channels and norm == "batch"
        if unchanged and {"bf16", "fp16"} & set(record.precision_ok):
            model._published = _fingerprint(model)
        model.preprocessing = record.preprocessing.for_channels(in_channels)
        model.threshold = record.threshold
        model.classes = (record.classes or None) if model.num_classes == record.num_classes else None
    if weights.saved is not None:
        model.take_over(weights.saved)
    if has_folded_norms(model):
        model.eval()  # so that nobody trains it without a word: train() says what to do first
    return model


@torch.no_grad()
def _fingerprint(model: nn.Module) -> tuple[float, float]:
    """What changes when weights are trained, or are others."""
    tensors = [x.double() for x in model.state_dict().values() if x.is_floating_point() and not x.is_meta]
    return sum(float(x.sum()) for x in tensors), sum(float(x.abs().sum()) for x in tensors)


def _as_saved(saved: SavedModel, num_classes: int | None, in_channels: int, norm: Norm) -> bool:
    """Whether the caller wants nothing of a saved model changed: its weights must then fit its own description."""
    same = num_classes in (None, saved.num_classes) and in_channels == saved.in_channels
    return same and norm == saved.arguments.get("norm", norm)


def _prune_as(model: SegmentationModel, saved: SavedModel, state: StateDict, arguments: Mapping[str, Any]) -> None:
    """Give a new model the channels of a saved one; heads and stem keep those that the caller wants."""
    kinds = (saved.arguments.get("norm", "batch"), arguments["norm"])
    if kinds[0] != kinds[1] and not all(kind in _BATCH_NORMS for kind in kinds):
        raise ValueError(f"a pruned model keeps its kind of norm, {kinds[0]!r}: got norm={kinds[1]!r}")
    with torch.device("meta"):
        usual = type(model)(num_classes=saved.num_classes, in_channels=saved.in_channels, **arguments)
    fit(model, usual.state_dict(), state)
    model.pruned = True


_BATCH_NORMS = ("batch", "sync_batch", "frozen_batch")


def _without_counters(state: StateDict) -> StateDict:
    """Without what a norm has or has not by its kind, and nothing depends on in eval mode."""
    return {key: value for key, value in state.items() if not key.endswith(".num_batches_tracked")}


def _made_of(state: StateDict, make: Callable[[], Model]) -> Model | None:
    """A model whose parameters are the checkpoint's own tensors, where those fit exactly; else None.

    Nothing is initialised only to be overwritten, and nothing is copied.
    """
    place = torch.get_default_device()  # torch.device as a context, too
    try:
        with torch.device("meta"):
            model = make()
    except (RuntimeError, NotImplementedError):  # it computes something as it is made, which needs values
        return None
    target = model.state_dict()
    looks = [{k: (v.shape, v.is_floating_point()) for k, v in values.items()} for values in (state, target)]
    fits = looks[0] == looks[1]
    if not fits or not all(value.is_meta for value in target.values()) or _has_other_tensors(model):
        return None
    places: set[int] = set()
    own: StateDict = {}
    for key, value in state.items():
        value = value.to(place, target[key].dtype).contiguous()
        shared = value.data_ptr() in places or value.untyped_storage().nbytes() != value.nbytes
        own[key] = value.clone() if shared and value.numel() else value
        places.add(value.data_ptr())
    model.load_state_dict(own, assign=True)
    return model


def _has_other_tensors(model: nn.Module) -> bool:
    """Whether there are tensors that a state dict does not bring: anchors, tables of positions."""
    persistent = model.state_dict().keys()
    if any(name not in persistent for name, _ in model.named_buffers()):
        return True
    slots = ("_parameters", "_buffers", "_modules")
    return any(_holds_tensor(v) for m in model.modules() for name, v in vars(m).items() if name not in slots)


def _holds_tensor(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(map(_holds_tensor, value)))


def _encoder_origin(weights: str | os.PathLike[str]) -> str:
    if weights == "imagenet":
        return "its encoder's ImageNet weights (pictures for research only)"
    return f"its encoder's weights in {Path(weights).name}, whose training data are not recorded"


def _classes_in(state: StateDict, cls: type[SegmentationModel]) -> int:
    """The length of the last head's bias: the main output's number of classes."""
    biases = [len(value) for key, value in state.items() if key.startswith(cls.heads) and key.endswith(".bias")]
    return biases[-1] if biases else cls.default_num_classes
