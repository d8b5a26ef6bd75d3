"""A base model that was trained for fewer steps."""

from dpobench.artifacts.files import file_hash, read_json
from dpobench.synthetic.embedded import undertrained

SMALL = {"hidden": 16, "layers": 1, "heads": 2, "batch": 16, "pairs": 8, "prompts": 8, "reviews": 16, "places": 8}


def test_a_share_of_the_steps_is_a_whole_training_of_so_many_and_has_learnt_less(tmp_path):
    share = undertrained(SMALL | {"steps": 40}, tmp_path, 0.25)
    whole = undertrained(SMALL | {"steps": 10}, tmp_path, 1.0)
    longer = undertrained(SMALL | {"steps": 40}, tmp_path, 1.0)
    assert share != whole
    assert file_hash(share / "model" / "model.safetensors") == file_hash(whole / "model" / "model.safetensors")
    assert file_hash(share / "model" / "tokenizer.json") == file_hash(longer / "model" / "tokenizer.json")
    measured = {folder: read_json(folder / "measured.json") for folder in (share, longer)}
    assert (measured[share]["steps"], measured[longer]["steps"]) == (10, 40)
    assert (
        measured[share]["floor"]
        == measured[longer]["floor"]
        < measured[longer]["held_out_loss"]
        < measured[share]["held_out_loss"]
    )
    assert sorted(file.name for file in share.iterdir()) == ["DONE", "measured.json", "model"]


def test_what_was_trained_once_is_found_again(tmp_path):
    first = undertrained(SMALL | {"steps": 4}, tmp_path, 0.5)
    before = (first / "model" / "model.safetensors").stat().st_mtime_ns
    assert undertrained(SMALL | {"steps": 4}, tmp_path, 0.5) == first
    assert (first / "model" / "model.safetensors").stat().st_mtime_ns == before
