"""One call of FlexAttention over a packed row, uncompiled on a CPU, against every answer read on its own after its prompt."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import flex_attention as library

from dpobench.models import flex_attention

# The library looks for a gradient wherever it traces; it hides this warning of its own, unless warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
# Two answers; three; an answer of one token after a prompt of one; one pair alone that is longer than the shortest row.
RAGGED = [(0, 7, (12, 31)), (31, 32, (33, 34)), (34, 60, (61, 90))]
GOLD = [(0, 5, (11, 12, 20)), (20, 43, (50, 57, 58))]
ALONE = [(0, 211, (215, 301))]


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    flex_attention._block_mask.cache_clear()


@pytest.fixture
def differentiable(monkeypatch):
    """The library refuses gradients on a CPU, where its compiled kernel has none; the uncompiled one has."""
    monkeypatch.setattr(library, "_validate_device", lambda *given: None, raising=False)


def row(size, heads=4, key_heads=2, width=16, dtype=torch.float32):
    torch.manual_seed(size)
    shapes = [(1, count, size, width) for count in (heads, key_heads, key_heads)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def one_by_one(query, key, value, pieces, scaling=None):
    """Every answer in a causal call of its own, together with its prompt."""
    answers = []
    for start, prompt_end, ends in pieces:
        for begin, end in pairwise((prompt_end, *ends)):
            alone = [torch.cat([x[:, :, start:prompt_end], x[:, :, begin:end]], 2) for x in (query, key, value)]
            grouped = query.shape[1] != key.shape[1]
            out = F.scaled_dot_product_attention(*alone, is_causal=True, scale=scaling, enable_gqa=grouped)
            answers.append(out if begin == prompt_end else out[:, :, prompt_end - start :])
    return torch.cat(answers, 2)


def apart(values, wanted):
    return max(
        float((f - w).detach().abs().max() / w.detach().abs().max()) for f, w in zip(values, wanted, strict=True)
    )


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("pieces", [RAGGED, GOLD, ALONE], ids=["ragged", "gold", "alone"])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_every_answer_is_read_as_if_alone_after_its_prompt(pieces, key_heads, dtype, within, differentiable):
    leaves = row(pieces[-1][2][-1], key_heads=key_heads, dtype=dtype)
    attended, wanted = flex_attention.attend_flex(*leaves, pieces), one_by_one(*leaves, pieces)
    assert attended.shape == wanted.shape
    assert apart([attended], [wanted]) <= within
    slope = torch.randn_like(wanted)
    assert apart(torch.autograd.grad(attended, leaves, slope), torch.autograd.grad(wanted, leaves, slope)) <= within


@pytest.mark.parametrize("scaling", [None, 0.2])
def test_heads_narrower_than_the_kernel_takes_are_scaled_by_their_own_width(scaling, differentiable):
    leaves = row(90, width=8, dtype=torch.float64)
    attended, wanted = flex_attention.attend_flex(*leaves, RAGGED, scaling), one_by_one(*leaves, RAGGED, scaling)
    assert apart([attended], [wanted]) <= 1e-13
    slope = torch.randn_like(wanted)
    assert apart(torch.autograd.grad(attended, leaves, slope), torch.autograd.grad(wanted, leaves, slope)) <= 1e-13


def test_what_sees_what_is_as_drawn():
    # A pair of a prompt of two tokens with answers of one and two, then one of a prompt of one with two answers of one.
    drawn = [
        "x.......",
        "xx......",
        "xxx.....",
        "xx.x....",
        "xx.xx...",
        ".....x..",
        ".....xx.",
        ".....x.x",
    ]
    visible = torch.tensor([[mark == "x" for mark in line] for line in drawn], dtype=torch.float64)
    # Queries of zero weigh all that they see alike; values that are unit vectors show which those are.
    zeros, units = torch.zeros(1, 1, 8, 8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)[None, None]
    attended = flex_attention.attend_flex(zeros, zeros, units, [(0, 2, (3, 5)), (5, 6, (7, 8))])
    torch.testing.assert_close(attended[0, 0], visible / visible.sum(1, keepdim=True), rtol=1e-15, atol=0)


def test_bf16_is_computed_to_its_own_precision(differentiable):
    leaves = row(90, dtype=torch.bfloat16)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    attended, wanted = flex_attention.attend_flex(*leaves, RAGGED), one_by_one(*exact, RAGGED)
    assert attended.dtype == torch.bfloat16
    slope = torch.randn_like(attended)
    gradients = torch.autograd.grad(attended, leaves, slope), torch.autograd.grad(wanted, exact, slope.double())
    # A number of bf16 has eight binary digits.
    assert apart([attended], [wanted]) <= 2**-7
    assert apart(*gradients) <= 2**-6


def test_under_autocast_queries_of_float32_meet_values_of_bf16(differentiable):
    query, key, value = row(90)
    with torch.autocast("cpu", torch.bfloat16):
        attended = flex_attention.attend_flex(query, key, value.bfloat16(), RAGGED)
    low = [each.bfloat16() for each in (query, key, value)]
    assert attended.dtype == torch.bfloat16
    assert torch.equal(attended, flex_attention.attend_flex(*low, RAGGED))
    (slope,) = torch.autograd.grad(attended.float().sum(), [query])
    assert slope.dtype == torch.float32


def test_the_layers_of_a_model_share_one_mask_of_a_row():
    masks = []

    def spied(query, key, value, *, block_mask, **options):
        masks.append(block_mask)
        return query

    for pieces in (RAGGED, list(RAGGED), GOLD, RAGGED):
        flex_attention.attend_flex(*row(pieces[-1][2][-1]), pieces, kernel=spied)
    first, again, gold, last = masks
    assert first is again is last
    assert gold is not first


def test_the_kernel_is_given_whole_contiguous_blocks_of_one_dtype():
    given = []

    def spied(*rows, **options):
        given.extend((tuple(each.shape), each.dtype, each.is_contiguous()) for each in rows)
        return rows[0]

    # As layers give them: heads stand between tokens in memory.
    query, key, value = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in row(384))
    with torch.autocast("cpu", torch.bfloat16):
        flex_attention.attend_flex(query, key, value.bfloat16(), [(0, 100, (300, 384))], kernel=spied)
    assert given == [((1, heads, 384, 16), torch.bfloat16, True) for heads in (4, 2, 2)]
    flex_attention.attend_flex(*row(385, width=8), [(0, 100, (300, 385))], kernel=spied)
    assert given[3:] == [((1, heads, 512, 16), torch.float32, True) for heads in (4, 2, 2)]


def test_rows_of_any_length_share_one_compiled_kernel():
    graphs = []

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = flex_attention._compiled.__wrapped__(backend=counted)
    with torch.no_grad():
        for size in (300, 40, 500, 1024, 1025, 2):
            pieces = [(0, 1, (2, size))] if size > 2 else [(0, 1, (2,))]
            leaves = row(size)
            attended = flex_attention.attend_flex(*leaves, pieces, kernel=compiled)
            assert apart([attended], [one_by_one(*leaves, pieces)]) <= 2e-6
    assert len(graphs) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float32, (5e-6, 5e-6)), (torch.bfloat16, (2**-7, 2**-6))], ids=["float32", "bf16"]
)
@pytest.mark.parametrize("pieces", [RAGGED, GOLD, ALONE], ids=["ragged", "gold", "alone"])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_the_compiled_kernel_gives_the_same_values_and_gradients(pieces, key_heads, dtype, within):
    given = row(pieces[-1][2][-1], key_heads=key_heads, width=64, dtype=dtype)
    leaves = [each.detach().cuda().requires_grad_() for each in given]
    exact = [each.detach().double().requires_grad_() for each in given]
    attended, wanted = flex_attention.attend_flex(*leaves, pieces), one_by_one(*exact, pieces)
    slope = torch.randn_like(wanted).to(dtype)
    gradients = torch.autograd.grad(attended, leaves, slope.cuda()), torch.autograd.grad(wanted, exact, slope.double())
    assert apart([attended.cpu()], [wanted]) <= within[0]
    assert apart([each.cpu() for each in gradients[0]], gradients[1]) <= within[1]
