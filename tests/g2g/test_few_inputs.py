"Compiled products of sparse layers: against PyTorch's operations, and after every way to change a weight behind their back."

import copy
import ctypes
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neurobridge.core import compiled
from neurobridge.g2g import EnsembleLinear, MaskedLinear, Rewirer, er_mask, few_inputs, to_masked
from neurobridge.g2g.few_inputs import ROWS_OPTIONS, ROWS_PROGRAM

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")
NUMBERS = (1, 3, 4, 5, 8, 16, 17, 40)
TYPES = (torch.float32, torch.bfloat16)


def there(dtype=torch.float32):
    return few_inputs._compiled(dtype) is not None


needs_compiler = pytest.mark.skipif(not there(), reason="no C compiler")


def product(layer, x):
    return F.linear(x, layer.weight * layer.mask, layer.bias)


def close(dtype):
    return dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else dict(rtol=0.03, atol=0.1)


def gradients(run, layer, x, grad):
    x = x.clone().requires_grad_()
    y = run(x)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], grad)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(24, 40), (32, 64), (5, 7)], ids=str)
def test_masked_layers_are_their_product(size, bias, dtype):
    "Outputs and gradients, where widths are no multiple of a register too; dead gradients are 0."
    layer = MaskedLinear(er_mask(size[1], size[0], 0.3, seed=1), bias=bias).to(dtype)
    for n in NUMBERS:
        x, grad = torch.randn(n, size[1]).to(dtype), torch.randn(n, size[0]).to(dtype)
        found = gradients(layer, layer, x, grad)
        expected = gradients(lambda x: product(layer, x), layer, x, grad)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, **close(dtype))
        assert (found[2][~layer.mask] == 0).all()
        with torch.inference_mode():
            torch.testing.assert_close(layer(x), expected[0], **close(dtype))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("grouping", ["index", "mixer"])
def test_ensembles_are_their_dense_layer(grouping, threads):
    torch.set_num_threads(threads)
    layer = EnsembleLinear(1024, 1024, p_inter=1 / 7, grouping=grouping, layer=1)
    dense = F.linear
    for n in (1, 4, 16):
        x, grad = torch.randn(n, 1024), torch.randn(n, 1024)
        found = gradients(layer, layer, x, grad)
        expected = dense(x, layer.dense_weight(), layer.dense_bias())
        torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[1], grad @ layer.dense_weight(), rtol=1e-4, atol=1e-4)
        masked = to_masked(layer)
        theirs = gradients(lambda x, m=masked: product(m, x), masked, x, grad)
        twin = copy.deepcopy(layer)
        twin.weight.data, twin.bias.data = found[2], found[3]
        torch.testing.assert_close(twin.dense_weight(), theirs[2], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(twin.dense_bias(), theirs[3], rtol=1e-4, atol=1e-4)


def step(layer, make):
    optimizer = make(layer.parameters())
    layer(torch.randn(6, layer.in_features)).square().sum().backward()
    optimizer.step()


def under_no_grad(layer):
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))


def in_inference_mode(layer):
    with torch.inference_mode():
        layer.weight.add_(1)


def rewired(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    rewirer = Rewirer(layer, optimizer, every=1, fraction=0.5)
    layer(torch.randn(6, layer.in_features)).sum().backward()
    optimizer.step()
    assert rewirer.table().moved.sum() > 0


def one_dead(layer):
    at = tuple((~layer.mask).nonzero()[3].tolist())
    layer.weight.data[at] = 7


def one_live(layer):
    layer.weight.data[tuple(layer.mask.nonzero()[3].tolist())] = 7


def state(layer):
    other = MaskedLinear(er_mask(layer.in_features, layer.out_features, 0.5, seed=9))
    nn.init.normal_(other.weight)
    layer.load_state_dict(other.state_dict())


CHANGES = {
    "sgd": lambda layer: step(layer, lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd foreach": lambda layer: step(layer, lambda p: torch.optim.SGD(p, lr=0.1, foreach=True)),
    "adam fused": lambda layer: step(layer, lambda p: torch.optim.Adam(p, lr=0.1, fused=True)),
    "load_state_dict": state,
    "no_grad copy_": under_no_grad,
    "inference_mode": in_inference_mode,
    "all by .data": lambda layer: layer.weight.data.normal_(),
    "one dead by .data": one_dead,
    "one live by .data": one_live,
    "numpy": lambda layer: layer.weight.detach().numpy().fill(2),
    "another tensor": lambda layer: setattr(layer.weight, "data", torch.randn(24, 40)),
    "another parameter": lambda layer: setattr(layer, "weight", nn.Parameter(torch.randn(24, 40))),
    "the mask in place": lambda layer: layer.mask.logical_not_(),
    "another mask": lambda layer: setattr(layer, "mask", er_mask(40, 24, 0.6, seed=5)),
    "rewiring": rewired,
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stale_is_multiplied(change):
    layer, x = MaskedLinear(er_mask(40, 24, 0.3, seed=1)), torch.randn(40, 40)
    for _ in range(2):
        for n in (1, 8, 40):
            torch.testing.assert_close(layer(x[:n]), product(layer, x[:n]), rtol=1e-4, atol=1e-4)
        CHANGES[change](layer)
        for n in (40, 8, 1):
            torch.testing.assert_close(layer(x[:n]), product(layer, x[:n]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("what", ["weight", "mask"])
def test_a_single_write_that_is_not_counted_counts_at_once(what):
    "In a large layer too, and in the gradient: nothing is remembered from call to call."
    layer, x = MaskedLinear(er_mask(512, 256, 0.3)), torch.randn(40, 512)
    layer(x)
    if what == "weight":
        one_dead(layer)
    else:
        layer.mask.data[3, :7] ^= True
    for n in (1, 8, 40):
        grad = torch.randn(n, 256)
        found = gradients(layer, layer, x[:n], grad)
        expected = gradients(lambda x: product(layer, x), layer, x[:n], grad)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [-1, 24, 2**40])
@pytest.mark.parametrize("name", ["sources", "place"])
def test_nothing_outside_the_layer_is_read_or_written(name, value):
    "A wiring may come from somebody's file; C has to look as PyTorch does, in both passes."
    layer, x = EnsembleLinear(24, 24, 4, grouping="mixer", layer=1), torch.randn(3, 24)
    x.requires_grad_()
    y = layer(x)
    wiring = layer.state_dict()[name].clone()
    wiring.view(-1)[5] = value
    layer.load_state_dict({name: wiring}, strict=False)
    with pytest.raises(IndexError):
        layer(x)
    if there():
        with pytest.raises(IndexError, match="lie outside the layer"):
            y.sum().backward()  # the wiring was written in place


@needs_compiler
def test_sizes_that_disagree_are_refused():
    weight, x, bias = torch.randn(2, 3, 5), torch.randn(4, 9), torch.randn(2, 3)
    library = few_inputs.library_for(x, weight, bias)
    sources = torch.zeros(2, 5, dtype=torch.int64)
    fits = few_inputs.Wiring(None, 6, sources=sources, place=torch.arange(6))
    assert few_inputs.rows_forward(library, x, weight, bias, fits).shape == (4, 6)
    for wrong in ({"sources": sources[:, :4]}, {"place": torch.arange(5)}):
        with pytest.raises(ValueError, match="expected"):
            few_inputs.rows_forward(library, x, weight, bias, fits._replace(**wrong))
    with pytest.raises(ValueError, match="bias has 3 numbers; expected 6"):
        few_inputs.rows_forward(library, x, weight, bias[:1], fits)
    assert few_inputs.library_for(x, weight, bias, sources=sources.int()) is None
    layer = MaskedLinear(er_mask(40, 24, 0.3))
    layer.mask = layer.mask[:, :7]
    with pytest.raises(RuntimeError):
        layer(torch.randn(2, 40))


@pytest.mark.parametrize("n", [2, 9, 40])
@pytest.mark.parametrize("kind", ["masked", "ensembles"])
def test_second_derivatives(kind, n):
    layer = EnsembleLinear(24, 16, 4, p_inter=1 / 3)
    masked = to_masked(layer)
    layer = masked if kind == "masked" else layer
    x = torch.randn(n, 24)

    def penalty(run, parameter):
        at = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(run(at).pow(3).mean(), at, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [at, parameter])

    ours = penalty(layer, layer.weight)
    theirs = penalty(lambda x: product(masked, x), masked.weight)
    assert theirs[0].norm() > 1e-5
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours[1].norm(), theirs[1].norm(), rtol=1e-3, atol=1e-6)


def test_copies_and_saved_layers_go_their_own_ways():
    layer, x = MaskedLinear(er_mask(40, 24, 0.3)), torch.randn(8, 40)
    layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert twin.state_dict().keys() == layer.state_dict().keys()
        with torch.no_grad():
            twin.weight.add_(1)
        torch.testing.assert_close(twin(x), product(twin, x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer(x), product(layer, x), rtol=1e-4, atol=1e-4)


def test_without_a_compiler_the_numbers_are_the_same(monkeypatch):
    layers = [EnsembleLinear(24, 16, 4, p_inter=1 / 3), MaskedLinear(er_mask(24, 16, 0.3))]
    x = [torch.randn(n, 24) for n in (1, 8, 40)]
    before = [[layer(each) for each in x] for layer in layers]
    monkeypatch.setattr(few_inputs, "_compiled", lambda dtype: None)
    for layer, found in zip(layers, before, strict=True):
        for each, y in zip(x, found, strict=True):
            torch.testing.assert_close(layer(each), y, rtol=1e-5, atol=1e-5)


@pytest.mark.long
@needs_compiler
@pytest.mark.parametrize("dtype", ROWS_OPTIONS, ids=str)
def test_the_source_compiles_without_warnings(tmp_path, monkeypatch, dtype):
    "And without wide registers it computes the same."
    for extra in (("-march=native", "-fopenmp"), ("-fopenmp",)):
        strict = (*extra, "-Wall", "-Wextra", "-Werror")
        monkeypatch.setattr(compiled, "_EXTRAS", (strict,))
        typed = ROWS_PROGRAM._replace(options=ROWS_OPTIONS[dtype])
        built = compiled._compile(compiled._compiler(), typed, tmp_path)
    library = ctypes.CDLL(str(built))
    for name, arguments in ROWS_PROGRAM.functions:
        getattr(library, name).argtypes = arguments
    monkeypatch.setattr(few_inputs, "_compiled", lambda dtype: library)
    layer = MaskedLinear(er_mask(40, 24, 0.3)).to(dtype)
    for n in NUMBERS:
        x, grad = torch.randn(n, 40).to(dtype), torch.randn(n, 24).to(dtype)
        found = gradients(layer, layer, x, grad)
        expected = gradients(lambda x: product(layer, x), layer, x, grad)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, **close(dtype))
