"""Every loss once more, slow and obvious: float64 numpy from the papers' equations, one pixel and one class at a time.

Nothing of segzoo is imported here. A reference takes `(mode, logits, target, counts, **options)` as numpy arrays:
logits `[N, C, H, W]`; multiclass: target and counts `[N, H, W]`; binary and multilabel: both `[N, C, H, W]`.
`counts` is True where a pixel counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray


def counted(target: Array, mask: Array | None = None, ignore_index: float | None = None) -> Array:
    """Where a pixel counts: where neither the mask nor the label says otherwise."""
    counts = np.ones(target.shape, bool) if ignore_index is None else target != ignore_index
    if mask is None:
        return counts
    if mask.ndim < target.ndim:
        mask = mask[:, None]
    return counts & (mask if mask.ndim == target.ndim else mask[:, 0])


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def log_softmax(x: Array) -> Array:
    shifted = x - x.max()
    return shifted - math.log(sum(math.exp(value) for value in shifted))


def probabilities(mode: str, logits: Array) -> Array:
    if mode == "multiclass":
        return np.apply_along_axis(lambda x: np.exp(log_softmax(x)), 1, logits)
    return np.vectorize(lambda x: math.exp(log_sigmoid(x)), otypes=[float])(logits)


def per_class(mode: str, logits: Array, target: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Probabilities, targets in 0..1 and what counts, each `[N, C, H, W]`."""
    p = probabilities(mode, logits)
    if mode == "multiclass":
        one_hot = np.stack([target == c for c in range(logits.shape[1])], axis=1)
        return p, one_hot.astype(float), np.broadcast_to(counts[:, None], p.shape)
    return p, target.astype(float), counts


def reduced(losses: dict[tuple[int, ...], float], divisor: float, shape: Sequence[int], reduction: str) -> Any:
    """Of the losses by pixel: their sum divided, their sum, or a picture of them."""
    if reduction == "none":
        picture = np.zeros(shape)
        for at, loss in losses.items():
            picture[at] = loss
        return picture
    total = math.fsum(losses.values())
    if reduction == "sum":
        return total
    return total / divisor if divisor else 0.0


def pixels(counts: Array) -> Iterator[tuple[int, ...]]:
    return (tuple(int(i) for i in at) for at in np.argwhere(counts))


# Pixel losses


def cross_entropy(
    mode: str,
    logits: Array,
    target: Array,
    counts: Array,
    *,
    weight: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Any:
    """Szegedy et al. 2016, eq. 3 for label smoothing; the weights as torch's documentation has them."""
    classes = logits.shape[1]
    w = [1.0] * classes if weight is None else list(weight)
    losses, divisor = {}, 0.0
    for n, y, x in pixels(counts):
        log_p, t = log_softmax(logits[n, :, y, x]), int(target[n, y, x])
        q = [label_smoothing / classes + (1 - label_smoothing) * (c == t) for c in range(classes)]
        losses[n, y, x] = -sum(q[c] * w[c] * log_p[c] for c in range(classes))
        divisor += w[t]
    return reduced(losses, divisor, target.shape, reduction)


def ohem_cross_entropy(
    mode: str,
    logits: Array,
    target: Array,
    counts: Array,
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    weight: Sequence[float] | None = None,
) -> float:
    """Shrivastava et al. 2016 as segmentation uses it: a list of (p of the true class, weight, loss), hardest first."""
    rows = []
    for at in pixels(counts):
        t = int(target[at])
        if mode == "multiclass":
            n, y, x = at
            log_p = float(log_softmax(logits[n, :, y, x])[t])
        else:
            log_p = log_sigmoid(logits[at] if t else -logits[at])
        rows.append((math.exp(log_p), 1.0 if weight is None else weight[t], -log_p))
    rows.sort(key=lambda row: row[0])
    k = min(min_kept, len(rows))
    hardest = rows[k - 1][0] if k else -1.0
    kept = [row for row in rows if row[0] < threshold or row[0] <= hardest]
    weights = sum(w for _, w, _ in kept)
    return sum(w * loss for _, w, loss in kept) / weights if weights else 0.0


def bce(
    mode: str,
    logits: Array,
    target: Array,
    counts: Array,
    *,
    pos_weight: float | Sequence[float] | None = None,
    reduction: str = "mean",
) -> Any:
    w = np.broadcast_to(1.0 if pos_weight is None else np.asarray(pos_weight, float), logits.shape[1:2])
    losses = {}
    for at in pixels(counts):
        x, t = float(logits[at]), float(target[at])
        losses[at] = -(w[at[1]] * t * log_sigmoid(x) + (1 - t) * log_sigmoid(-x))
    return reduced(losses, len(losses), logits.shape, reduction)


def focal(
    mode: str,
    logits: Array,
    target: Array,
    counts: Array,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | None = None,
    *,
    normalized: bool = False,
    reduction: str = "mean",
) -> Any:
    """Lin et al. 2017, eq. 5; soft targets as torchvision's; `normalized`: Sofiiuk et al. 2019, eq. 3."""
    losses, modulating, divisor = {}, 0.0, 0.0
    for at in pixels(counts):
        if mode == "multiclass":
            n, y, x = at
            log_p, t = log_softmax(logits[n, :, y, x]), int(target[at])
            wrong = sum(math.exp(log_p[c]) for c in range(len(log_p)) if c != t)
            a = 1.0 if alpha is None else alpha[t]
            loss = -log_p[t]
            divisor += a
        else:
            x, t = float(logits[at]), float(target[at])
            p, q = math.exp(log_sigmoid(x)), math.exp(log_sigmoid(-x))
            wrong = q * t + p * (1 - t)
            loss = -t * log_sigmoid(x) - (1 - t) * log_sigmoid(-x)
            a = 1.0
            if alpha is not None:
                positive = float(np.broadcast_to(np.asarray(alpha, float), logits.shape[1:2])[at[1]])
                a = positive * t + (1 - positive) * (1 - t)
            divisor += 1
        losses[at] = a * wrong**gamma * loss
        modulating += wrong**gamma
    shape = target.shape if mode == "multiclass" else logits.shape
    return reduced(losses, modulating if normalized else divisor, shape, reduction)


# Region losses


def over_classes_and_pictures(
    mode: str,
    logits: Array,
    target: Array,
    counts: Array,
    loss_of_a_class: Callable[[Array, Array], float],
    *,
    values: Array | None = None,
    per_image: bool,
    classes: str | Sequence[int],
    weight: Sequence[float] | None,
) -> float:
    """The weighted mean over the classes that count, of the batch or of each picture that has a counted pixel."""
    p, t, m = per_class(mode, logits, target, counts)
    p = p if values is None else values
    n, c = p.shape[:2]
    results = []
    for pictures in [[i] for i in range(n)] if per_image else [list(range(n))]:
        if not m[pictures].any():
            continue
        total, weights = 0.0, 0.0
        for k in range(c):
            where = m[pictures, k]
            if not where.any():
                continue
            here = t[pictures, k][where]
            if mode != "binary":
                if classes == "present" and not (here > 0).any():
                    continue
                if not isinstance(classes, str) and k not in classes:
                    continue
            w = 1.0 if weight is None else weight[k]
            total += w * loss_of_a_class(p[pictures, k][where], here)
            weights += w
        results.append(total / weights if weights else 0.0)
    return sum(results) / len(results) if results else 0.0


def _region(score: Callable[[float, float, float], tuple[float, float]], default_smooth: float = 1.0) -> Callable:
    def reference(
        mode: str,
        logits: Array,
        target: Array,
        counts: Array,
        *,
        smooth: float = default_smooth,
        per_image: bool = False,
        classes: str | Sequence[int] = "all",
        weight: Sequence[float] | None = None,
        log: bool = False,
        power: float = 1.0,
    ) -> float:
        def loss(p: Array, t: Array) -> float:
            above, below = score(math.fsum(p * t), math.fsum(p), math.fsum(t))
            value = (above + smooth) / (below + smooth) if below + smooth > 0 else 1.0
            return -math.log(max(value, 1e-7)) if log else max(1 - value, 0.0) ** power

        return over_classes_and_pictures(
            mode, logits, target, counts, loss, per_image=per_image, classes=classes, weight=weight
        )

    return reference


dice = _region(lambda both, p, t: (2 * both, p + t))  # Milletari et al. 2016, with the plain sums of Sudre et al. 2017
jaccard = _region(lambda both, p, t: (both, p + t - both))  # Rahman & Wang 2016


def tversky(*arrays: Any, alpha: float = 0.3, beta: float = 0.7, **options: Any) -> float:
    """Salehi et al. 2017: alpha weighs the false positives, beta the false negatives."""
    return _region(lambda both, p, t: (both, both + alpha * (p - both) + beta * (t - both)))(*arrays, **options)


def focal_tversky(*arrays: Any, gamma: float = 4 / 3, **options: Any) -> float:
    """Abraham & Khan 2019, eq. 4, with the mean over the classes instead of their sum."""
    return tversky(*arrays, power=1 / gamma, **options)


def lovasz_extension(set_function: Callable[[set[int]], float], errors: Sequence[float]) -> float:
    """Berman et al. 2018, definition 1 (eq. 7, 8): the errors in falling order, each times what its pixel adds."""
    total, chosen = 0.0, set()
    for i in sorted(range(len(errors)), key=lambda i: -errors[i]):
        before = set_function(chosen)
        chosen = chosen | {i}
        total += errors[i] * (set_function(chosen) - before)
    return total


def jaccard_set_loss(truth: Sequence[float]) -> Callable[[set[int]], float]:
    """Berman et al. 2018, eq. 6: what is mispredicted, over that and the truth."""
    positive = {i for i, t in enumerate(truth) if t == 1}
    return lambda mispredicted: len(mispredicted) / len(positive | mispredicted) if mispredicted else 0.0


def lovasz(
    mode: str,
    logits: Array,
    target: Array,
    counts: Array,
    *,
    per_image: bool = False,
    classes: str | Sequence[int] = "present",
    weight: Sequence[float] | None = None,
) -> float:
    """Multiclass: eq. 10 to 12 (softmax). Binary, multilabel: eq. 9 (hinge) on the logits."""

    def softmax_errors(p: Array, t: Array) -> float:
        return lovasz_extension(jaccard_set_loss(t), [abs(truth - value) for value, truth in zip(p, t)])

    def hinge_errors(x: Array, t: Array) -> float:
        errors = [max(0.0, 1 - value * (1 if truth else -1)) for value, truth in zip(x, t)]
        return lovasz_extension(jaccard_set_loss(t), errors)

    softmax = mode == "multiclass"
    return over_classes_and_pictures(
        mode,
        logits,
        target,
        counts,
        softmax_errors if softmax else hinge_errors,
        values=None if softmax else logits,
        per_image=per_image,
        classes=classes,
        weight=weight,
    )


# Boundary and structure


def signed_distance(inside: Array, counts: Array) -> Array:
    """`[H, W]` → the distance map of Kervadec et al. 2019 by their code's convention, each pixel against all others."""
    result = np.zeros(inside.shape)
    objects, others = list(pixels(inside & counts)), list(pixels(~inside & counts))
    if not objects or not others:
        return result
    for y, x in itertools.product(*map(range, inside.shape)):
        if inside[y, x]:
            result[y, x] = 1 - min(math.hypot(y - v, x - u) for v, u in others)
        else:
            result[y, x] = min(math.hypot(y - v, x - u) for v, u in objects)
    return result


def boundary(
    mode: str,
    logits: Array,
    target: Array,
    counts: Array,
    *,
    classes: str | Iterable[int] = "all",
    distance: Array | None = None,
) -> float:
    p, t, m = per_class(mode, logits, target, counts)
    products = []
    for n in range(p.shape[0]):
        for c in range(p.shape[1]) if classes == "all" else classes:
            phi = signed_distance(t[n, c] == 1, m[n, c]) if distance is None else distance[n, c]
            products += [phi[at] * p[n, c][at] for at in pixels(m[n, c])]
    return math.fsum(products) / len(products) if products else 0.0


def gaussian_window(size: int, sigma: float) -> Array:
    line = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    window = np.array([[a * b for b in line] for a in line])
    return window / window.sum()


def ssim_map(a: Array, b: Array, window: Array) -> Array:
    """`[H, W]` twice → Wang et al. 2004, eq. 13 to 16, with zeros around the pictures."""
    size = len(window)
    r = size // 2
    a, b = np.pad(a, r), np.pad(b, r)
    c1, c2 = 0.01**2, 0.03**2
    result = np.zeros((a.shape[0] - 2 * r, a.shape[1] - 2 * r))
    for y, x in np.ndindex(*result.shape):
        one, two = a[y : y + size, x : x + size], b[y : y + size, x : x + size]
        mean_a, mean_b = (window * one).sum(), (window * two).sum()
        var_a, var_b = (window * (one - mean_a) ** 2).sum(), (window * (two - mean_b) ** 2).sum()
        covariance = (window * (one - mean_a) * (two - mean_b)).sum()
        luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
        result[y, x] = luminance * (2 * covariance + c2) / (var_a + var_b + c2)
    return result


def ssim(mode: str, logits: Array, target: Array, counts: Array, *, window_size: int = 11, sigma: float = 1.5) -> float:
    p, t, m = per_class(mode, logits, target, counts)
    p, t = np.where(m, p, 0), np.where(m, t, 0)
    window = gaussian_window(window_size, sigma)
    values = []
    for n, c in itertools.product(*map(range, p.shape[:2])):
        similarity = ssim_map(p[n, c], t[n, c], window)
        values += [similarity[at] for at in pixels(m[n, c])]
    return 1 - math.fsum(values) / len(values) if values else 0.0


def hybrid_saliency(*arrays: Any, bce: float = 1.0, ssim: float = 1.0, iou: float = 1.0) -> float:
    """Qin et al. 2019 (BASNet), eq. 2."""
    parts = hybrid_saliency_parts(*arrays)
    return bce * parts["bce"] + ssim * parts["ssim"] + iou * parts["iou"]


def hybrid_saliency_parts(*arrays: Any) -> dict[str, float]:
    return {"bce": bce(*arrays), "ssim": ssim(*arrays), "iou": jaccard(*arrays, smooth=0.0, per_image=True)}


# Imbalance


def class_weights(counts: Sequence[float], method: str = "median_frequency", *, beta: float = 0.9999) -> list[float]:
    total = float(sum(counts))
    seen = [float(n) for n in counts if n > 0]
    if method == "enet":  # Paszke et al. 2016, section 5.2
        return [1 / math.log(1.02 + n / total) for n in counts]
    if method == "inverse":
        return [total / (len(seen) * n) if n else 0.0 for n in counts]
    if method == "median_frequency":  # Eigen & Fergus 2015, section 6.3.2
        middle = float(np.median([n / total for n in seen]))
        return [middle / (n / total) if n else 0.0 for n in counts]
    if method == "effective_number":  # Cui et al. 2019, eq. 2 and 3; the seen classes' mean is 1
        raw = [(1 - beta) / -math.expm1(n * math.log(beta)) if n else 0.0 for n in counts]
        return [value * len(seen) / sum(raw) for value in raw]
    raise KeyError(method)


REFERENCES: dict[str, Callable[..., Any]] = {
    "CrossEntropyLoss": cross_entropy,
    "OhemCrossEntropyLoss": ohem_cross_entropy,
    "BCELoss": bce,
    "FocalLoss": focal,
    "DiceLoss": dice,
    "JaccardLoss": jaccard,
    "TverskyLoss": tversky,
    "FocalTverskyLoss": focal_tversky,
    "LovaszLoss": lovasz,
    "BoundaryLoss": boundary,
    "SSIMLoss": ssim,
    "HybridSaliencyLoss": hybrid_saliency,
}
