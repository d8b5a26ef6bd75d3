"""The table over the vocabulary: value and gradient of the plain formula, whatever the chunk, and never more alive than a chunk."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dpobench.models import lm_head
from dpobench.models.lm_head import Projection, in_chunks, token_logps
from dpobench.models.logprobs import Head, completion_logps, head_of, pair_batch
from dpobench.training.accelerate import accelerator_for
from tests.training import tiny

K, H, V = 13, 8, 31


def case(dtype=torch.float64, **given):
    torch.manual_seed(0)
    hidden, weight = torch.randn(K, H, dtype=dtype), torch.randn(V, H, dtype=dtype)
    bias = torch.randn(V, dtype=dtype) if given.pop("biased", False) else None
    leaves = [leaf.requires_grad_() for leaf in (hidden, weight, bias) if leaf is not None]
    return leaves, Projection(weight, bias, **given), torch.randint(V, (K,)), torch.randn(K, dtype=dtype)


def plain(hidden, projection, targets):
    logits = hidden @ projection.weight.T
    logits = logits if projection.bias is None else logits + projection.bias
    logits = logits * projection.factor
    if projection.cap is not None:
        logits = projection.cap * torch.tanh(logits / projection.cap)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def limit(monkeypatch, *, chunk=10**6, stored=10**6):
    monkeypatch.setitem(lm_head.CHUNK, "cpu", chunk * V)
    monkeypatch.setitem(lm_head.STORED, "cpu", stored * V)


@pytest.mark.parametrize(("chunk", "stored"), [(100, 100), (5, 100), (1, 100), (13, 12), (5, 0), (1, 0)])
@pytest.mark.parametrize("given", [{}, {"biased": True}, {"factor": 0.25}, {"factor": 3.0, "cap": 2.0, "biased": True}])
def test_value_and_gradient_are_those_of_the_plain_formula(chunk, stored, given, monkeypatch):
    leaves, projection, targets, weights = case(**given)
    wanted = plain(leaves[0], projection, targets)
    slopes = torch.autograd.grad(wanted, leaves, weights)
    limit(monkeypatch, chunk=chunk, stored=stored)
    logps = token_logps(leaves[0], projection, targets)
    assert torch.allclose(logps, wanted, rtol=0, atol=1e-13)
    for slope, other in zip(slopes, torch.autograd.grad(logps, leaves, weights), strict=True):
        assert torch.allclose(slope, other, rtol=0, atol=1e-12)


def test_a_frozen_matrix_gets_no_gradient_and_changes_none():
    leaves, projection, targets, weights = case()
    wanted = torch.autograd.grad(plain(leaves[0], projection, targets), leaves[0], weights)[0]
    leaves[1].requires_grad_(requires_grad=False)
    token_logps(leaves[0], projection, targets).backward(weights)
    assert leaves[1].grad is None
    assert torch.allclose(leaves[0].grad, wanted, rtol=0, atol=1e-12)


def test_a_target_whose_probability_underflows_keeps_its_log_probability_and_its_gradient():
    # Logits 0, 300 and 300: log-probabilities -300 - log 2 and -log 2 twice, where exp(-300) is 0 in float32.
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [300.0], [300.0]])
    logps = token_logps(hidden, Projection(weight), torch.tensor([0]))
    assert logps.item() == pytest.approx(-300 - 0.6931472, abs=1e-4)
    # Its derivative by the hidden state is 0 - 300: its own weight minus the mean weight.
    logps.backward()
    assert hidden.grad.item() == pytest.approx(-300, abs=1e-4)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor anything made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor):
                self.entries = max(self.entries, one.numel())
        return out


class Calls(TorchDispatchMode):
    """Remembers what was called."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("quantity", ["log-probability", "any function"])
def test_a_table_that_is_too_large_never_exists_whole(quantity, monkeypatch):
    leaves, projection, targets, weights = case()
    limit(monkeypatch, chunk=9, stored=0)

    def compute(hidden, wanted):
        return [(hidden @ projection.weight.T).log_softmax(-1).gather(1, wanted[:, None])[:, 0]]

    with Largest() as largest:
        if quantity == "log-probability":
            logps = token_logps(leaves[0], projection, targets)
        else:
            logps = in_chunks(compute, projection.weight, leaves[0], targets)[0]
        logps.backward(weights)
    # Nine tokens of the thirteen: a chunk. The matrix itself has fewer entries, 8 a word.
    assert largest.entries == 9 * V
    wanted = torch.autograd.grad(plain(leaves[0], projection, targets), leaves, weights)
    assert all(torch.allclose(leaf.grad, slope, rtol=0, atol=1e-12) for leaf, slope in zip(leaves, wanted, strict=True))


def test_in_bf16_the_gradient_is_that_of_float32_to_the_rounding_of_bf16():
    leaves, projection, targets, weights = case(torch.float32)
    wanted = torch.autograd.grad(plain(leaves[0], projection, targets), leaves, weights)
    with torch.autocast("cpu", torch.bfloat16):
        logps = token_logps(leaves[0], projection, targets)
    slopes = torch.autograd.grad(logps, leaves, weights)
    assert logps.dtype == torch.float32
    for slope, other in zip(slopes, wanted, strict=True):
        assert slope.dtype == torch.float32
        # bf16 keeps 8 bits: 2**-8 is 0.4 %.
        assert 1e-4 < float((slope - other).norm() / other.norm()) < 8e-3


def test_without_gradients_no_derivative_is_computed_or_stored():
    leaves, projection, targets, _ = case()
    with torch.no_grad(), Calls() as calls:
        logps = token_logps(leaves[0], projection, targets)
    assert torch.allclose(logps, plain(leaves[0], projection, targets).detach(), rtol=0, atol=1e-13)
    # The derivative is minus one at every target.
    assert not any("scatter" in name or "empty" in name for name in calls.names)
    with Calls() as calls:
        token_logps(leaves[0], projection, targets)
    assert any("scatter_add" in name for name in calls.names)


def test_a_head_that_turns_its_logits_into_float32_afterwards_is_known_all_the_same():
    model = tiny.llama()
    low = accelerator_for("cpu", "bf16")
    wrapped = low.prepare_model(model)
    with torch.no_grad(), low.autocast():
        logps = completion_logps(wrapped, pair_batch(tiny.rows(3)))
    accelerator_for("cpu", "float32")
    assert head_of(wrapped)._direct
    assert torch.isfinite(logps).all()


def test_asking_for_the_head_under_autocast_leaves_no_weight_without_a_gradient():
    model = tiny.llama()
    hidden = torch.randn(3, model.config.hidden_size)
    with torch.autocast("cpu", torch.bfloat16):
        Head(model)(hidden)
        Head(model)(hidden).sum().backward()
    assert model.get_output_embeddings().weight.grad.abs().sum() > 0
