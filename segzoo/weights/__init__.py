"""Where numbers come from: the catalogue of checkpoints, fetching, converting and fitting them."""

from typing import TYPE_CHECKING, Any

from segzoo.weights.catalog import get_weights, list_weights
from segzoo.weights.record import Preprocessing, Source, Weights
from segzoo.weights.resolve import download

if TYPE_CHECKING:
    from segzoo.weights.calibrate import recalibrate

__all__ = ["Preprocessing", "Source", "Weights", "download", "get_weights", "list_weights", "recalibrate"]


def __getattr__(name: str) -> Any:
    if name == "recalibrate":  # late, so that calibrate.py is a program, too: python -m segzoo.weights.calibrate
        from segzoo.weights.calibrate import recalibrate

        return recalibrate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
