"""Adapters of the peft library, sharded weights, and weights that are not all there."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpobench.artifacts import scores
from dpobench.artifacts.files import folder_hash, read_json
from dpobench.errors import UserError
from dpobench.models import adapters, checkpoint
from dpobench.sweep import external_checkpoint
from tests.sweep.test_external import asked, evaluated, made, refused, save  # noqa: F401 - fixtures
from tests.training.tiny import llama

peft = pytest.importorskip("peft")
RANK, ALPHA = 2, 6
NAMES = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(2) for part in ("q", "v")]


def tensors(seed=0, rank=RANK, names=NAMES):
    torch.manual_seed(seed)
    found = {}
    for name in names:
        found[f"base_model.model.{name}.lora_A.weight"] = 0.2 * torch.randn(rank, 32)
        found[f"base_model.model.{name}.lora_B.weight"] = 0.2 * torch.randn(32, rank)
    return found


def lora(folder, base, weights=None, **told):
    """An adapter's folder, written by hand in the library's format."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA}
    config |= {"target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": str(base)}
    (folder / adapters.CONFIG).write_text(json.dumps(config | told))
    save_file(tensors() if weights is None else weights, folder / adapters.WEIGHTS)
    return folder


def merged_by_hand(weights):
    """The base with W + alpha/r * B A in the adapted layers."""
    model = llama().eval()
    with torch.no_grad():
        for name in NAMES:
            a, b = (weights[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
            model.get_submodule(name).weight += ALPHA / RANK * b @ a
    return model


def test_an_adapter_is_merged_as_the_formula_says(made, tmp_path):  # noqa: F811
    folder = lora(tmp_path / "lora", made / "base")
    policy = checkpoint.Checkpoint(folder, made / "base", base=made / "base").policy
    wanted = merged_by_hand(tensors()).state_dict()
    found = policy.state_dict()
    assert set(found) == set(wanted)
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-6
    plain = llama().state_dict()
    assert min(float((found[f"{name}.weight"] - plain[f"{name}.weight"]).abs().max()) for name in NAMES) > 0.01


def test_an_adapter_scores_as_the_whole_model_does_and_its_folder_stays_as_it_was(evaluated, made, tmp_path):  # noqa: F811
    folder, whole = lora(tmp_path / "lora", made / "base"), save(merged_by_hand(tensors()), tmp_path / "whole")
    before = folder_hash(folder)
    _, plan = evaluated(str(folder), str(whole), evaluators=("samples", "preference"))
    rows = [read_json(evaluated.out / "runs" / run["id"] / "run.json") for run in plan["runs"]]
    assert [(row["variant"], row["flags"]) for row in rows] == [
        ("lora", ["trained elsewhere"]),
        ("whole", ["trained elsewhere"]),
    ]
    tables = [scores.read(evaluated.out / "runs" / run["id"], "preference")[0] for run in plan["runs"]]
    assert tables[0].drop(columns="value").equals(tables[1].drop(columns="value"))
    assert (tables[0]["value"] - tables[1]["value"]).abs().max() < 1e-4
    assert folder_hash(folder) == before


def test_an_adapter_of_another_base_is_merged_into_that_and_says_so(evaluated, made, tmp_path):  # noqa: F811
    other = save(llama(seed=9), tmp_path / "other")
    said, plan = evaluated(str(lora(tmp_path / "lora", other)))
    note = read_json(evaluated.out / "runs" / plan["runs"][0]["id"] / "run.json")
    assert note["source"]["base"] == str(other)
    assert "adapter of another base" in note["flags"]
    assert "adapter of another base than the reference" in said


def test_a_base_of_equal_content_elsewhere_is_the_reference(evaluated, made, tmp_path):  # noqa: F811
    copied = save(llama(), tmp_path / "copied")
    _, plan = evaluated(str(lora(tmp_path / "lora", copied)))
    note = read_json(evaluated.out / "runs" / plan["runs"][0]["id"] / "run.json")
    assert Path(note["source"]["base"]) == (made / "base").resolve()
    assert note["flags"] == ["trained elsewhere"]


def test_a_base_called_as_the_reference_is_called_needs_no_second_look(made, tmp_path, monkeypatch):  # noqa: F811
    folder = lora(tmp_path / "lora", "org/base")
    from dpobench.sweep.inputs import Inputs

    inputs = Inputs(made / "base", "", (), (), (), asked(made).evaluation, {})
    monkeypatch.setattr(external_checkpoint, "resolve", lambda *_: pytest.fail("requested from the hub again"))
    assert external_checkpoint._base(folder, "org/base", inputs) == made / "base"


LAYER = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
UNFIT = {
    "a tensor too few": (lambda t: {k: v for k, v in t.items() if k != LAYER}, {}, "missing adapter keys"),
    "a tensor too many": (lambda t: t | {LAYER.replace("layers.0", "layers.7"): torch.zeros(2, 32)}, {}, "layers.7"),
    "another shape": (lambda t: t | {LAYER: torch.zeros(RANK, 8)}, {}, "size mismatch"),
    "no such layer": (lambda t: t, {"target_modules": ["c_attn"]}, "c_attn"),
    "an option of another version": (lambda t: t, {"use_novel": True}, "does not know its option use_novel = True"),
    "an unknown kind": (lambda t: t, {"peft_type": "NOVEL"}, "NOVEL"),
    "no weights to merge": (
        lambda t: {"prompt_embeddings": torch.zeros(4, 32)},
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "r": None, "lora_alpha": None, "target_modules": None},
        "cannot be merged",
    ),
    "numbers that are not finite": (lambda t: t | {LAYER: torch.full((RANK, 32), torch.nan)}, {}, "NaN"),
}


@pytest.mark.parametrize(("change", "told", "said"), UNFIT.values(), ids=UNFIT)
def test_an_adapter_that_does_not_fit_is_refused(made, tmp_path, change, told, said):  # noqa: F811
    folder = lora(tmp_path / "lora", made / "base", change(tensors()), **told)
    with pytest.raises(UserError, match=said) as found:
        _ = checkpoint.Checkpoint(folder, made / "base", base=made / "base").policy
    assert str(folder) in str(found.value)
    assert "\n" not in str(found.value)


def test_an_option_of_another_version_that_is_off_is_no_obstacle(made, tmp_path):  # noqa: F811
    folder = lora(tmp_path / "lora", made / "base", use_novel=False, novel_config=None)
    assert checkpoint.Checkpoint(folder, made / "base", base=made / "base").policy is not None


def test_an_adapter_whose_merging_changes_the_answers_is_refused(made, tmp_path):  # noqa: F811
    # One matrix, used twice: merging the adapter of the head moves the embedding, too.
    base = save(llama(tie_word_embeddings=True), tmp_path / "tied")
    weights = {
        f"base_model.model.lm_head.lora_{s}.weight": v
        for s, v in (("A", torch.randn(2, 32)), ("B", torch.randn(48, 2)))
    }
    folder = lora(tmp_path / "lora", base, weights, target_modules=["lm_head"])
    with pytest.raises(UserError, match="merged into its base it answers otherwise"):
        _ = checkpoint.Checkpoint(folder, base, base=base).policy


def test_folders_that_cannot_be_adapters_are_refused(made, tmp_path):  # noqa: F811
    pickled = lora(tmp_path / "pickled", "b")
    (pickled / adapters.WEIGHTS).rename(pickled / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin is pickled and not loaded"):
        adapters.read(pickled)
    both = lora(tmp_path / "both", "b")
    llama().save_pretrained(both)
    with pytest.raises(UserError, match="holds an adapter and a whole model"):
        adapters.read(both)
    with pytest.raises(UserError, match="names no base model"):
        adapters.read(lora(tmp_path / "baseless", "b", base_model_name_or_path=None))
    with pytest.raises(UserError, match="would load code"):
        adapters.read(lora(tmp_path / "code", "b", megatron_config={"a": 1}, megatron_core="os"))
    (tmp_path / "baseless" / adapters.CONFIG).write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        adapters.read(tmp_path / "baseless")


def test_an_adapter_is_no_reference(made, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=r"holds an adapter.*merge it into its base first"):
        checkpoint.resolve(str(lora(tmp_path / "lora", made / "base")))


def test_a_model_in_shards_is_the_model_in_one_file(made, tmp_path):  # noqa: F811
    sharded = tmp_path / "sharded"
    llama().save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    found = checkpoint.load_model(checkpoint.resolve(str(sharded))).state_dict()
    wanted = checkpoint.load_model(made / "base").state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_missing_shard_is_named(tmp_path):
    llama().save_pretrained(tmp_path, max_shard_size="20KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UserError, match=rf"1 of \d+ files of weights are missing, the first is {lost.name}"):
        checkpoint.resolve(str(tmp_path))


def test_weights_that_a_file_lacks_are_never_drawn_at_random(tmp_path):
    llama().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    del whole["model.layers.1.mlp.up_proj.weight"]
    save_file(whole, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, model\.layers\.1\.mlp\.up_proj\.weight among them"):
        checkpoint.load_model(tmp_path)


@pytest.mark.parametrize("told", [{"use_novel": True}, {"peft_type": "NOVEL"}])
def test_what_the_library_does_not_know_is_refused_before_anything_is_scored(evaluated, made, tmp_path, told):  # noqa: F811
    refused(
        evaluated, "NOVEL|use_novel", str(made / "ckpt" / "seed0"), str(lora(tmp_path / "lora", made / "base", **told))
    )


def test_an_adapter_without_the_library_says_how_to_install_it(evaluated, made, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(evaluated, r"pip install 'dpobench\[peft\]'", str(lora(tmp_path / "lora", made / "base")))
