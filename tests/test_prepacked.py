"""Weights in oneDNN's layout: the same results; whether they pay is timed, so that is not asked here."""

import pytest
import torch

from hfbatch import prepacked
from hfbatch.prepacked import PrepackedLinear, pays, prepack


def model_of(dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    layers = (torch.nn.Linear(24, 40, bias=bias), torch.nn.GELU(), torch.nn.Linear(40, 8, bias=bias))
    return torch.nn.Sequential(*layers).to(dtype).eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64, 24), (1, 64, 24), (7, 9, 24)], ids=str)
def test_results_are_those_of_plain_layers(monkeypatch, bias, shape):
    monkeypatch.setattr(prepacked, "pays", lambda layer, tokens: True)
    plain, ours, rows = model_of(bias=bias), model_of(bias=bias), torch.randn(shape)
    assert prepack(ours, 64)
    assert [type(layer) for layer in ours] == [PrepackedLinear, torch.nn.GELU, PrepackedLinear]
    with torch.inference_mode():
        assert torch.allclose(plain(rows), ours(rows), atol=1e-6)
    assert ours.state_dict().keys() == plain.state_dict().keys()


def test_where_it_does_not_pay_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(prepacked, "pays", lambda layer, tokens: False)
    model = model_of()
    assert not prepack(model, 64)
    assert [type(layer) for layer in model] == [torch.nn.Linear, torch.nn.GELU, torch.nn.Linear]


def test_the_shape_that_costs_most_is_timed(monkeypatch):
    timed = []
    monkeypatch.setattr(prepacked, "pays", lambda layer, tokens: bool(timed.append((layer.weight.shape, tokens))))
    prepack(model_of(), 64)
    assert timed == [((40, 24), 64)]


def test_what_pays_is_a_matter_of_seconds(monkeypatch):
    clock = iter([2.0, 1.0] * 10)
    monkeypatch.setattr(prepacked, "_seconds", lambda work: (work(), next(clock))[1])
    assert pays(model_of()[0], 64)
    clock = iter([1.0, 1.0] * 10)
    assert not pays(model_of()[0], 64)


def test_another_dtype_than_was_packed_uses_the_plain_weights(monkeypatch):
    """As a second try in float32 does, see precision.py."""
    monkeypatch.setattr(prepacked, "pays", lambda layer, tokens: True)
    model, exact, rows = model_of(), model_of().double(), torch.randn(5, 24, dtype=torch.float64)
    prepack(model, 64)
    with torch.inference_mode():
        assert torch.equal(model.double()(rows), exact(rows))


def test_a_dtype_without_a_kernel_does_not_pay():
    assert not pays(model_of(torch.float64)[0], 64)
