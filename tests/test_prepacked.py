"""Weights in oneDNN's layout give the same results."""

import pytest
import torch

from hfbatch.prepacked import PrepackedLinear, prepack


def model_of(dtype=torch.float32, bias=True):
    torch.manual_seed(0)
    layers = (torch.nn.Linear(24, 40, bias=bias), torch.nn.GELU(), torch.nn.Linear(40, 8, bias=bias))
    return torch.nn.Sequential(*layers).to(dtype).eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64, 24), (1, 64, 24), (7, 9, 24)], ids=str)
def test_results_are_those_of_plain_layers(bias, shape):
    plain, ours, rows = model_of(bias=bias), model_of(bias=bias), torch.randn(shape)
    assert prepack(ours, 64)
    assert [type(layer) for layer in ours] == [PrepackedLinear, torch.nn.GELU, PrepackedLinear]
    with torch.inference_mode():
        assert torch.allclose(plain(rows), ours(rows), atol=1e-6)
    assert ours.state_dict().keys() == plain.state_dict().keys()


def test_another_dtype_than_was_packed_uses_the_plain_weights():
    """As a second try in float32 does, see precision.py."""
    model, exact, rows = model_of(), model_of().double(), torch.randn(5, 24, dtype=torch.float64)
    prepack(model, 64)
    with torch.inference_mode():
        assert torch.equal(model.double()(rows), exact(rows))


def test_a_dtype_without_a_kernel_leaves_the_model_as_it_is():
    model = model_of(torch.float64)
    assert not prepack(model, 64)
    assert [type(layer) for layer in model] == [torch.nn.Linear, torch.nn.GELU, torch.nn.Linear]
