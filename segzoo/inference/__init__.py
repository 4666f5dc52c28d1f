"""From a model to masks: the Predictor and what it is made of."""

from segzoo.inference.evaluation import Evaluation, evaluate
from segzoo.inference.folder import FolderReport, predict_folder
from segzoo.inference.instances import InstancePrediction
from segzoo.inference.optimize import optimize_for_inference
from segzoo.inference.picture import Picture, read_picture
from segzoo.inference.prediction import Prediction
from segzoo.inference.predictor import Predictor
from segzoo.inference.preprocessing import preprocess

__all__ = [
    "Evaluation",
    "FolderReport",
    "InstancePrediction",
    "Picture",
    "Prediction",
    "Predictor",
    "evaluate",
    "optimize_for_inference",
    "predict_folder",
    "preprocess",
    "read_picture",
]
