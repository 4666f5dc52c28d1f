"""U²-Net: the two tables, the key layout, any size, and the bundled weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import segzoo
from segzoo.layers import RSU, RSU4F
from segzoo.models import U2Net
from segzoo.models.u2net import Stage

TINY_ENCODER = [Stage(h, 3 if i == 0 else 4, 2, 4) for i, h in enumerate([7, 6, 5, 4, "4F", "4F"])]
TINY_DECODER = [Stage(h, 8, 2, 4) for h in ["4F", 4, 5, 6, 7]]
REFERENCE = Path(__file__).parent / "data" / "u2netp_reference.json"


def tiny(**kwargs: object) -> U2Net:
    torch.manual_seed(0)
    return U2Net(TINY_ENCODER, TINY_DECODER, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "count"), [("u2net_full", 43_995_469), ("u2net_lite", 1_128_333)])
def test_parameter_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in segzoo.create_model(name, weights=None).parameters()) == count


def rows(model: U2Net, part: str) -> list[tuple[object, int, int, int]]:
    """The table read back from the built modules."""
    table = []
    for stage in getattr(model, part):
        height = "4F" if isinstance(stage, RSU4F) else len(stage.encode_modules)
        conv_in, first = stage.conv_in.conv, stage.encode_modules[0].conv
        assert isinstance(stage, (RSU, RSU4F))
        table.append((height, conv_in.in_channels, first.out_channels, conv_in.out_channels))
    return table


def test_the_papers_table_of_the_full_model() -> None:
    with torch.device("meta"):
        model = segzoo.u2net_full(weights=None)
    assert rows(model, "encode_modules") == [
        (7, 3, 32, 64),
        (6, 64, 32, 128),
        (5, 128, 64, 256),
        (4, 256, 128, 512),
        ("4F", 512, 256, 512),
        ("4F", 512, 256, 512),
    ]
    assert rows(model, "decode_modules") == [
        ("4F", 1024, 256, 512),
        (4, 1024, 128, 256),
        (5, 512, 64, 128),
        (6, 256, 32, 64),
        (7, 128, 16, 64),
    ]


def test_the_papers_table_of_the_lite_model() -> None:
    model = segzoo.u2net_lite(weights=None)
    inputs = [3, 64, 64, 64, 64, 64]
    assert rows(model, "encode_modules") == [(h, c, 16, 64) for h, c in zip([7, 6, 5, 4, "4F", "4F"], inputs)]
    assert rows(model, "decode_modules") == [(h, 128, 16, 64) for h in ["4F", 4, 5, 6, 7]]


def test_state_dict_keys_are_the_tutorials() -> None:
    keys = set(segzoo.u2net_lite(weights=None).state_dict())
    bn = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = {f"side_modules.{i}.{p}" for i in range(6) for p in ("weight", "bias")}
    expected |= {"out_conv.weight", "out_conv.bias"}
    heights = {"encode": [7, 6, 5, 4, 4, 4], "decode": [4, 4, 5, 6, 7]}
    for part, stages in heights.items():
        for stage, height in enumerate(stages):
            blocks = ["conv_in"]
            blocks += [f"encode_modules.{i}" for i in range(height)]
            blocks += [f"decode_modules.{i}" for i in range(height - 1)]
            for block in blocks:
                prefix = f"{part}_modules.{stage}.{block}"
                expected |= {f"{prefix}.conv.weight"} | {f"{prefix}.bn.{p}" for p in bn}
    assert keys == expected


@given(h=st.integers(1, 321), w=st.integers(1, 479), n=st.integers(1, 2), norm=st.sampled_from(["batch", "group"]))
def test_any_size_in_eval_and_train(h: int, w: int, n: int, norm: str) -> None:
    model = tiny(norm=norm)
    x = torch.rand(n, 3, h, w)
    assert model.predict(x).shape == (n, 1, h, w)
    outputs = model.train()(x)
    assert [list(o.shape) for o in outputs] == [[n, 1, h, w]] * 7


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (16, 16), (17, 17), (321, 479)])
def test_batch_of_one_trains_at_the_sizes_where_batch_norm_alone_fails(size: tuple[int, int]) -> None:
    model = tiny().train()
    sum(o.sum() for o in model(torch.rand(1, 3, *size))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "norm",
    ["batch", "sync_batch", "frozen_batch", "group", "instance", "layer", "evo_s0", "evo_b0", torch.nn.BatchNorm2d],
)
@pytest.mark.parametrize("size", [(1, 1), (33, 47)])
def test_any_norm(norm: object, size: tuple[int, int]) -> None:
    if norm is torch.nn.BatchNorm2d and size == (1, 1):
        pytest.skip("torch's own batch norm refuses a single value; ours does not")
    model = tiny(norm=norm)
    x = torch.rand(1, 3, *size)
    assert model.predict(x).isfinite().all()
    sum(o.sum() for o in model.train()(x)).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_train_outputs_are_in_the_papers_order() -> None:
    """S_fuse first, then De_1 … De_5, En_6: told apart by silencing each side head."""
    model = tiny().train()
    with torch.no_grad():
        for i, head in enumerate(model.side_modules):  # deepest first
            head.weight.zero_()
            head.bias.fill_(float(i))
        model.out_conv.weight.copy_(torch.tensor([1.0, 10, 100, 1000, 10000, 100000]).reshape(1, 6, 1, 1))
        model.out_conv.bias.zero_()
        outputs = model(torch.rand(1, 3, 20, 20))
    assert [round(float(o.mean())) for o in outputs] == [sum(10**k * (5 - k) for k in range(6)), 5, 4, 3, 2, 1, 0]


def test_main_output_of_train_mode_is_evals_where_the_norm_has_no_mode() -> None:
    model = tiny(norm="group")
    x = torch.rand(2, 3, 40, 30)
    torch.testing.assert_close(model.train()(x)[0], model.eval()(x))


def test_compiles_exports_and_autocasts() -> None:
    model = tiny().eval()
    x = torch.rand(1, 3, 48, 64)
    expected = model(x)
    # DYNAMIC fails where a size would be fixed; a named range does too, for torch cannot prove what ceil_mode asks.
    dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (x,), dynamic_shapes=(dynamic,)).module()
    torch.testing.assert_close(program(x), expected, atol=1e-5, rtol=1e-4)
    other = torch.rand(1, 3, 101, 35)
    torch.testing.assert_close(program(other), model(other), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (model(x).float() - expected).abs().max() < 0.1
        assert model.predict(x).dtype == torch.float32


# The bundled weights.


def test_bundled_weights_find_the_cup(coffee: Path) -> None:
    probabilities = segzoo.Predictor("u2net_lite.duts")(coffee).probabilities[0]
    assert probabilities[150:250, 200:400].min() > 0.5  # in the cup
    assert probabilities[:, :20].max() < 0.1 and probabilities[:, -60:].max() < 0.1  # the table


def reference_input(seed: int) -> torch.Tensor:
    return torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def test_bundled_weights_give_the_published_files_values() -> None:
    """Against values that onnxruntime gave for rembg's file; tests/data/make_reference.py makes them again."""
    reference = json.loads(REFERENCE.read_text())
    model = segzoo.u2net_lite().eval()
    for seed, values in reference["random"].items():
        out = model.predict(reference_input(int(seed)))[0, 0, ::16, ::16]
        torch.testing.assert_close(out, torch.tensor(values), atol=1e-5, rtol=0)
    from segzoo.inference import preprocess, read_picture

    picture = read_picture(Path(__file__).parent.parent / "examples/images/coffee.jpg")
    out = model.predict(preprocess(picture, model.preprocessing)[None])[0, 0, ::16, ::16]
    torch.testing.assert_close(out, torch.tensor(reference["coffee"]), atol=2e-4, rtol=0)
    assert (out - torch.tensor(reference["coffee"])).abs().mean() < 5e-6


def test_bundled_weights_against_onnxruntime_on_random_input(u2netp_onnx: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(u2netp_onnx)
    model = segzoo.u2net_lite().eval()
    for seed in range(3):
        x = reference_input(seed)
        expected = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        torch.testing.assert_close(model.predict(x), expected, atol=1e-5, rtol=0)


@pytest.mark.data
def test_bundled_weights_against_onnxruntime_on_real_pictures(u2netp_onnx: Path, data: Path) -> None:
    import onnxruntime

    from segzoo.inference import optimize_for_inference, preprocess, read_picture

    session = onnxruntime.InferenceSession(u2netp_onnx)
    plain = segzoo.u2net_lite().eval()
    for model in (plain, optimize_for_inference(plain, "fp32")):
        differences = []
        for path in sorted((data / "ecssd/images").glob("*.jpg"))[5::200]:
            x = preprocess(read_picture(path), model.preprocessing)[None]
            expected = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
            differences.append((model.predict(x) - expected).abs())
        stacked = torch.stack(differences)
        assert stacked.max() < 2e-4 and stacked.mean() < 5e-6


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("batch", "most"), [(2, 0.05), (8, 0.03)])
def test_calibrated_norms_make_sense_in_train_mode(data: Path, batch: int, most: float) -> None:
    """Pictures that did not calibrate them; the plain conversion's mean prediction falls from 0.22 to 0.005 here."""
    from segzoo.inference import preprocess, read_picture

    model = segzoo.u2net_lite()
    paths = sorted((data / "ecssd/images").glob("*.jpg"))[800:1000:25]
    differences, means = [], []
    for i in range(0, len(paths), batch):
        x = torch.stack([preprocess(read_picture(p), model.preprocessing) for p in paths[i : i + batch]])
        expected = model.predict(x)
        with torch.no_grad():
            trained = segzoo.u2net_lite().train()(x)[0].sigmoid()
        differences.append((trained - expected).abs().mean())
        means.append((trained.mean() / expected.mean()).item())
    assert torch.stack(differences).mean() < most
    assert all(0.7 < ratio < 1.4 for ratio in means)
