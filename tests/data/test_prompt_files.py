"""Files of prompts alone: what may stand in the column `prompt`, and what is refused."""

import json

import pytest

from dpobench.data.reading import read_dialogues
from dpobench.errors import BadRow

USER, ASSISTANT = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}


def written(folder, *prompts):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in prompts), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("prompt", "dialogue"),
    [
        ("why?", (USER,)),
        (USER, (USER,)),
        ([USER, ASSISTANT, USER], (USER, ASSISTANT, USER)),
        ([{"from": "human", "value": "why?"}], (USER,)),
    ],
)
def test_a_prompt_is_text_or_messages(prompt, dialogue, tmp_path):
    assert read_dialogues(written(tmp_path, {"prompt": prompt})) == [dialogue]


@pytest.mark.parametrize(
    ("row", "column", "fault", "remedy"),
    [
        ({"text": "why?"}, "prompt", "is missing (the row has: text)", "add it"),
        ({"prompt": None}, "prompt", "is null", "fill it in"),
        ({"prompt": " \n"}, "prompt", "is empty", "write a prompt"),
        ({"prompt": []}, "prompt", "has no messages", "at least one turn"),
        ({"prompt": [USER, ASSISTANT]}, "prompt", "ends with role assistant", "must be the user's"),
        ({"prompt": [{"content": "why?"}]}, "prompt[0].role", "is missing", "known roles"),
        ({"prompt": [{"role": "user", "content": ["why?"]}]}, "prompt[0].content[0]", "is a text", "a part is an object"),
    ],
)  # fmt: skip
def test_a_bad_prompt_names_file_row_column_and_remedy(row, column, fault, remedy, tmp_path):
    path = written(tmp_path, {"prompt": "good"}, row)
    with pytest.raises(BadRow) as refusal:
        read_dialogues(path)
    what, todo = str(refusal.value).split("; ", 1)
    assert what.startswith(f'{path} row 1: "{column}" {fault}')
    assert remedy in todo
