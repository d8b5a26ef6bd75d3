"""Models on disk and by name: what is loaded, what is refused and how it is said."""

import huggingface_hub
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpobench.errors import DpobenchError, UserError
from dpobench.models import checkpoint


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    words = {f"w{i}": i for i in range(16)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="w1"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_hub_name_is_downloaded_without_pickled_weights_or_code(folder, monkeypatch):
    requests = []

    def download(name, allow_patterns, revision):
        requests.append((name, allow_patterns, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert checkpoint.resolve("org/some-model") == folder.resolve()
    ((name, patterns, revision),) = requests
    assert (name, revision) == ("org/some-model", None)
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in patterns)


def test_a_hub_name_that_is_not_to_be_had_says_what_was_tried(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="model 'org/no-such-model': no such folder, and the hub does not give it"):
        checkpoint.resolve("org/no-such-model")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_is_never_looked_up_at_the_hub(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="no such folder"):
        checkpoint.resolve(name)


def test_a_folder_without_safetensors_is_refused(folder):
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match=r"has no \*\.safetensors"):
        checkpoint.resolve(str(folder))


def test_a_weight_that_is_not_finite_is_named(folder):
    model = checkpoint.load_model(folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    model.save_pretrained(folder)
    with pytest.raises(UserError, match=r"lm_head\.weight holds 1 values that are not finite"):
        checkpoint.load_model(folder)


def test_a_tokenizer_without_end_token_is_refused(folder):
    tokenizer = checkpoint.load_tokenizer(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="no end token"):
        checkpoint.load_tokenizer(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder):
    tokenizer = checkpoint.load_tokenizer(folder)
    tokenizer.add_tokens(["more"])
    with pytest.raises(UserError, match="16 embeddings, its tokenizer uses ids up to 16"):
        checkpoint.check_vocabulary(checkpoint.load_model(folder), tokenizer)


def test_the_key_of_a_model_follows_its_content_not_its_place(folder, tmp_path):
    before = checkpoint.model_hash(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert checkpoint.model_hash(moved) == before
    (moved / "generation_config.json").write_text("{}")
    assert checkpoint.model_hash(moved) == before  # sampling is always explicit
    weights = next(moved.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert checkpoint.model_hash(moved) != before


def test_what_was_saved_answers_as_before(folder, tmp_path):
    model, tokenizer = checkpoint.load_model(folder), checkpoint.load_tokenizer(folder)
    assert checkpoint.save(model, tokenizer, tmp_path / "saved") == 0.0
    with torch.no_grad():
        model.lm_head.weight += 0.1
    with pytest.raises(DpobenchError, match="differs from the trained one"):
        checkpoint.compare_with_saved(model, tmp_path / "saved")


def test_checkpoints_of_one_reference_share_it_until_its_content_changes(folder):
    def reference(key):
        return checkpoint.Checkpoint(folder / "policy", folder, reference_hash=key).reference

    first = reference(checkpoint.model_hash(folder))
    assert reference(checkpoint.model_hash(folder)) is first
    changed = checkpoint.load_model(folder)
    with torch.no_grad():
        changed.lm_head.weight += 1
    changed.save_pretrained(folder)
    again = reference(checkpoint.model_hash(folder))
    assert torch.equal(again.lm_head.weight, changed.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, first.lm_head.weight)
    assert reference("") is not reference("")
