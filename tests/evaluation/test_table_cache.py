"""Tables cached by the content of a checkpoint."""

import json
import shutil

import pandas as pd
import pytest

from dpobench.evaluation.table_cache import cached_table
from dpobench.models.checkpoint import Checkpoint


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """An adapter and its base, and the number that the cache holds for both."""
    monkeypatch.setenv("DPOBENCH_CACHE", str(tmp_path / "cache"))
    for name, weights in (("adapter", b"a"), ("base", b"b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        file = "adapter_model.safetensors" if name == "adapter" else "model.safetensors"
        (tmp_path / name / file).write_bytes(weights)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8}))

    def number(value, folder="adapter", base="base"):
        checkpoint = Checkpoint(tmp_path / folder, tmp_path / "reference", base=base and tmp_path / base)
        return cached_table("tests", checkpoint, "settings", lambda: pd.DataFrame({"value": [value]}))["value"][0]

    return tmp_path, number


def test_an_adapter_of_equal_content_is_known_again_wherever_it_lies(adapter):
    root, number = adapter
    assert number(1) == number(2) == 1
    for name in ("adapter", "base"):
        shutil.copytree(root / name, root / f"{name}2")
    assert number(3, "adapter2", "base2") == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter/adapter_config.json", b'{"peft_type": "LORA", "lora_alpha": 64}'),
        ("adapter/adapter_model.safetensors", b"c"),
        ("base/model.safetensors", b"c"),
    ],
)
def test_an_adapter_with_another_scale_other_weights_or_base_is_another_checkpoint(adapter, name, content):
    root, number = adapter
    assert number(1) == 1
    (root / name).write_bytes(content)
    assert number(2) == 2


def test_an_adapter_is_no_whole_model_of_the_same_files(adapter):
    _, number = adapter
    assert (number(1), number(2, base=None)) == (1, 2)
