"""The laws, and one value computed by hand."""

import math
from pathlib import Path

import pytest
import torch

from dpobench import Pairs, Side
from dpobench.losses.registry import variants
from dpobench.testing import check

variants.add_file(Path(__file__).with_name("clipped_dpo.py"))


def test_all_laws_hold():
    assert [f"{law.name}: {law.reason}" for law in check(variants.get("clipped_dpo")) if not law.passed] == []


def test_value_by_hand():
    # One token a side. Log-ratios: chosen -1 - (-2) = 1, rejected -3 - (-1) = -2; margin 3.
    # 0.1 * 5 * tanh(3 / 5) = 0.26852; -log sigmoid(0.26852) = log(1 + e^-0.26852) = 0.56787.
    mask = torch.ones(1, 1, dtype=torch.bool)
    chosen = Side(torch.tensor([[-1.0]]), torch.tensor([[-2.0]]), mask)
    rejected = Side(torch.tensor([[-3.0]]), torch.tensor([[-1.0]]), mask)
    value = variants.get("clipped_dpo").bind(beta=0.1, longest=5.0)(Pairs(chosen, rejected))
    assert float(value) == pytest.approx(0.56787, abs=1e-5)
    assert float(value) == pytest.approx(math.log(1 + math.exp(-0.5 * math.tanh(0.6))))
