"""From a model to masks: the Predictor and what it is made of."""

from segzoo.inference.crf import crf
from segzoo.inference.edges import refine_edges
from segzoo.inference.evaluation import Evaluation, evaluate
from segzoo.inference.folder import FolderReport, predict_folder
from segzoo.inference.foreground import estimate_foreground
from segzoo.inference.instances import InstancePrediction
from segzoo.inference.multiscale import average_predictions, multi_scale
from segzoo.inference.optimize import optimize_for_inference
from segzoo.inference.picture import Picture, read_picture
from segzoo.inference.postprocess import largest_component, remove_small, threshold
from segzoo.inference.prediction import Prediction
from segzoo.inference.predictor import Predictor
from segzoo.inference.preprocessing import preprocess
from segzoo.inference.tiling import sliding_window

__all__ = [
    "Evaluation",
    "FolderReport",
    "InstancePrediction",
    "Picture",
    "Prediction",
    "Predictor",
    "average_predictions",
    "crf",
    "estimate_foreground",
    "evaluate",
    "largest_component",
    "multi_scale",
    "optimize_for_inference",
    "predict_folder",
    "preprocess",
    "read_picture",
    "refine_edges",
    "remove_small",
    "sliding_window",
    "threshold",
]
