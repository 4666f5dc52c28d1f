"""Where numbers come from: the catalogue of checkpoints, fetching, converting and fitting them."""

from segzoo.weights.catalog import Preprocessing, Source, Weights, get_weights, list_weights

__all__ = ["Preprocessing", "Source", "Weights", "get_weights", "list_weights"]
