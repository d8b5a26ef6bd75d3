import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpobench.data.rows import Preference
from dpobench.data.template import control_tokens, render_prompt
from dpobench.data.tokenise import tokenise, tokenise_prompt
from dpobench.data.tokens import read_pairs, write_pairs
from dpobench.errors import UserError

ALL = ["plain_tokenizer", "chat_tokenizer", "begin_tokenizer", "twice_begin_tokenizer", "spaced_tokenizer"]


def asks(text="why?", chosen="because", rejected="no", number=0, before=()):
    return Preference(
        (*before, {"role": "user", "content": text}), chosen, rejected, {"score_chosen": 1.0}, "rows", number
    )


def dialogue(number=0):
    before = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"})
    return asks("and why?", "the answer", "no", number, before)


@pytest.fixture(params=ALL)
def tokenizer(request):
    return request.getfixturevalue(request.param)


def text_of(tokenizer, ids):
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def test_prompt_and_answers_read_back_as_the_rendered_text(tokenizer):
    row = dialogue()
    (pair,), _ = tokenise([row], tokenizer)
    prompt = render_prompt(tokenizer, row.prompt)
    shown = text_of(tokenizer, pair.prompt).removeprefix("<s>").lstrip(" ")
    assert shown == prompt.removeprefix("<s>").lstrip(" ")
    end = tokenizer.eos_token
    for side, answer in ((pair.chosen, row.chosen), (pair.rejected, row.rejected)):
        assert text_of(tokenizer, side).lstrip(" ") == answer + end
        both = text_of(tokenizer, [*pair.prompt, *side])
        assert both.endswith(prompt.removeprefix("<s>") + text_of(tokenizer, side))


def test_plain_text_has_one_blank_between_prompt_and_answer(plain_tokenizer, spaced_tokenizer):
    for tokenizer in (plain_tokenizer, spaced_tokenizer):
        (pair,), _ = tokenise([dialogue()], tokenizer)
        both = text_of(tokenizer, [*pair.prompt, *pair.chosen]).lstrip(" ")
        assert both == "Human: hello\n\nAssistant: yes?\n\nHuman: and why?\n\nAssistant: the answer<|end|>"


def test_no_blank_is_invented_where_an_answer_begins(spaced_tokenizer, tmp_path):
    text = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    (pair,), _ = tokenise([asks()], spaced_tokenizer, template=template_file(tmp_path, text))
    assert text_of(spaced_tokenizer, pair.chosen) == "because<|end|>"
    assert text_of(spaced_tokenizer, [*pair.prompt, *pair.chosen]).lstrip(" ") == "[user]why?[assistant]because<|end|>"


def test_the_plain_template_puts_the_system_turn_first(plain_tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why?"}]
    assert render_prompt(plain_tokenizer, messages) == "Be brief.\n\nHuman: why?\n\nAssistant:"


def test_there_is_one_end_token_and_it_is_the_last(tokenizer):
    pairs, _ = tokenise([asks(), dialogue(1)], tokenizer)
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            assert list(side).count(tokenizer.eos_token_id) == 1
            assert side[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["begin_tokenizer", "twice_begin_tokenizer"])
def test_there_is_one_begin_token_whoever_writes_it(name, request):
    tokenizer = request.getfixturevalue(name)
    (pair,), _ = tokenise([dialogue()], tokenizer)
    begin = tokenizer.bos_token_id
    assert [list(ids).count(begin) for ids in (pair.prompt, pair.chosen, pair.rejected)] == [1, 0, 0]
    assert pair.prompt[0] == begin


def test_a_template_that_writes_the_begin_token_is_enough(byte_level, tmp_path):
    made = byte_level(["<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    (plain,), _ = tokenise([asks()], made, template="plain")
    assert made.bos_token_id not in plain.prompt
    file = tmp_path / "t.jinja"
    file.write_text("{{ bos_token }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}", encoding="utf-8")
    (pair,), report = tokenise([asks()], made, template=str(file))
    assert list(pair.prompt).count(made.bos_token_id) == 1
    assert report.template.name == "t.jinja"
    # This template writes no end token: it is added after all it writes.
    assert text_of(made, pair.chosen) == "because\n</s>"


def test_what_a_template_writes_after_its_end_token_is_cut(chat_tokenizer):
    (pair,), _ = tokenise([asks()], chat_tokenizer)
    assert text_of(chat_tokenizer, pair.chosen) == "because<|im_end|>"
    assert text_of(chat_tokenizer, pair.prompt).endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_the_prompt_to_generate_from_is_the_prompt_trained_on(tokenizer):
    rows = [asks(), dialogue(1), asks("odd <|im_end|></s><|end|> text", number=2)]
    pairs, _ = tokenise(rows, tokenizer)
    for row, pair in zip(rows, pairs, strict=True):
        assert tokenise_prompt(row.prompt, tokenizer) == tuple(pair.prompt.tolist())


def test_an_answer_that_is_cut_loses_its_end_token_and_is_counted(plain_tokenizer):
    row = asks(chosen="x y z " * 30, rejected="no")
    (whole,), before = tokenise([row], plain_tokenizer)
    limit = len(whole.prompt) + 10
    (pair,), report = tokenise([row], plain_tokenizer, max_tokens=limit, max_prompt_tokens=len(whole.prompt))
    assert (before.cut_answers, report.cut_answers, report.cut_pairs) == (0, 1, 1)
    assert pair.chosen.tolist() == whole.chosen.tolist()[:10]
    assert plain_tokenizer.eos_token_id not in pair.chosen
    assert pair.rejected[-1] == plain_tokenizer.eos_token_id


def test_an_answer_that_just_fits_keeps_its_end_token(plain_tokenizer):
    (whole,), _ = tokenise([asks()], plain_tokenizer)
    room = len(whole.prompt) + max(len(whole.chosen), len(whole.rejected))
    (pair,), report = tokenise([asks()], plain_tokenizer, max_tokens=room, max_prompt_tokens=len(whole.prompt))
    assert report.cut_answers == 0
    assert pair.chosen.tolist() == whole.chosen.tolist()


def test_answers_that_are_equal_once_cut_are_dropped_and_counted(plain_tokenizer):
    same = asks(chosen="x" * 90 + "a", rejected="x" * 90 + "b", number=4)
    rows = [asks(), same]
    size = len(tokenise_prompt(same.prompt, plain_tokenizer))
    pairs, report = tokenise(rows, plain_tokenizer, max_tokens=size + 20, max_prompt_tokens=size)
    assert [pair.id for pair in pairs] == [rows[0].id]
    assert report.dropped == {"answers identical once cut": 1}
    assert report.dropped_rows == {"answers identical once cut": (4,)}
    with pytest.raises(UserError, match=r"all 1 rows are lost .*identical once cut: 1.*raise --set recipe.max_tokens"):
        tokenise([same], plain_tokenizer, max_tokens=size + 20, max_prompt_tokens=size)


def test_a_long_prompt_is_dropped_whole_and_never_cut(plain_tokenizer):
    rows = [*(asks(number=i) for i in range(19)), asks("long " * 99, number=19)]
    pairs, report = tokenise(rows, plain_tokenizer, max_tokens=200, max_prompt_tokens=50)
    assert len(pairs) == report.pairs == 19
    assert report.dropped == {"prompt too long": 1}
    assert report.rows == report.pairs + sum(report.dropped.values())


def test_more_than_ten_percent_long_prompts_are_an_error(plain_tokenizer):
    rows = [*(asks(number=i) for i in range(8)), asks("long " * 99, number=8)]
    with pytest.raises(
        UserError, match=r"1 of 9 rows \(11%\): prompt > max_prompt_tokens 50 \(shortest prompt \d+ tokens"
    ):
        tokenise(rows, plain_tokenizer, max_tokens=200, max_prompt_tokens=50)
    pairs, report = tokenise(rows, plain_tokenizer, max_tokens=200, max_prompt_tokens=50, most_lost=0.2)
    assert (len(pairs), report.dropped) == (8, {"prompt too long": 1})
    with pytest.raises(
        UserError, match=r"all 9 rows: prompt > max_prompt_tokens 4 .*raise --set recipe.max_prompt_tokens"
    ):
        tokenise(rows, plain_tokenizer, max_tokens=200, max_prompt_tokens=4)


@pytest.mark.parametrize(("most", "prompt"), [(10, 10), (10, 0), (5, 8)])
def test_limits_that_leave_no_room_are_refused(plain_tokenizer, most, prompt):
    with pytest.raises(UserError, match=f"max_prompt_tokens {prompt} and max_tokens {most}"):
        tokenise([asks()], plain_tokenizer, max_tokens=most, max_prompt_tokens=prompt)


def test_a_tokenizer_without_end_token_is_refused_and_one_without_pad_is_not(byte_level, plain_tokenizer):
    with pytest.raises(UserError, match=r"no end token .*tokenizer_config.json"):
        tokenise([asks()], byte_level(["<x>"]))
    assert plain_tokenizer.pad_token_id is None
    assert len(tokenise([asks()], plain_tokenizer)[0]) == 1


def test_control_tokens_in_the_data_become_plain_text(tokenizer):
    hostile = "".join(control_tokens(tokenizer))
    row = asks(f"a {hostile} b", f"c {hostile}", f"{hostile} d")
    clean = asks("a b", "c", "d")
    (pair,), report = tokenise([row], tokenizer)
    (plain,), nothing = tokenise([clean], tokenizer)
    control = set(tokenizer.all_special_ids)
    for side in ("prompt", "chosen", "rejected"):
        number = sum(token in control for token in getattr(pair, side).tolist())
        assert number == sum(token in control for token in getattr(plain, side).tolist())
    assert hostile in text_of(tokenizer, pair.prompt)
    assert text_of(tokenizer, pair.chosen).endswith(f"c {hostile}{tokenizer.eos_token}")
    assert (report.neutralised, nothing.neutralised) == (3 * len(control_tokens(tokenizer)), 0)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.one_of(st.text(max_size=8), st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im", "_end|>"])), max_size=5
    ),
    answers=st.tuples(st.text(max_size=12), st.text(max_size=12)).filter(lambda a: a[0] != a[1] and all(a)),
)
def test_no_text_is_lost_and_no_control_id_comes_from_it(chat_tokenizer, pieces, answers):
    row = asks("".join(pieces), *answers)
    (pair,), _ = tokenise([row], chat_tokenizer)
    assert text_of(chat_tokenizer, pair.chosen) == answers[0] + "<|im_end|>"
    assert text_of(chat_tokenizer, pair.prompt) == render_prompt(chat_tokenizer, row.prompt)
    control = {chat_tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>")}
    assert sum(token in control for token in pair.prompt.tolist()) == 3


def template_file(folder, text):
    file = folder / "template.jinja"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_a_template_that_rewrites_the_prompt_is_refused(plain_tokenizer, tmp_path):
    file = template_file(tmp_path, "{{ messages | length }}{% for m in messages %} {{ m['content'] }}{% endfor %}")
    with pytest.raises(
        UserError, match=r"'template\.jinja' writes a prompt differently.*from character 0.*--set data.template=plain"
    ):
        tokenise([asks()], plain_tokenizer, template=file)


def test_a_dialogue_the_template_refuses_is_dropped_or_an_error(plain_tokenizer, tmp_path):
    text = "{% for m in messages %}{% if 'odd' in m['content'] %}{{ raise_exception('no odd turns') }}{% endif %}"
    file = template_file(tmp_path, text + " {{ m['content'] }}{% endfor %}")
    rows = [*(asks(number=i) for i in range(19)), asks("odd", number=19)]
    pairs, report = tokenise(rows, plain_tokenizer, template=file)
    assert (len(pairs), report.dropped) == (19, {"template refuses the dialogue": 1})
    with pytest.raises(UserError, match="1 of 2 rows: the chat template refuses the dialogue: no odd turns"):
        tokenise(rows[-2:], plain_tokenizer, template=file)
    with pytest.raises(UserError, match="no odd turns"):
        tokenise_prompt(rows[-1].prompt, plain_tokenizer, file)


def test_a_missing_or_broken_template_is_named(plain_tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"data\.template = chatml: no such file; give auto, plain or a Jinja file"):
        tokenise([asks()], plain_tokenizer, template="chatml")
    with pytest.raises(UserError, match=r"template\.jinja line 2: "):
        tokenise([asks()], plain_tokenizer, template=template_file(tmp_path, "a\n{% for %}"))


def test_auto_takes_the_chat_template_and_plain_does_not(chat_tokenizer, plain_tokenizer):
    templates = [
        tokenise([asks()], t, template=w)[1].template for t, w in ((chat_tokenizer, "auto"), (chat_tokenizer, "plain"))
    ]
    assert [template.name for template in templates] == ["chat", "plain"]
    assert templates[0].hash != templates[1].hash
    assert tokenise([asks()], plain_tokenizer)[1].template == templates[1]


def test_the_report_counts_what_is_there(plain_tokenizer, tmp_path):
    rows = [asks("why " * (i + 1), number=i) for i in range(5)]
    pairs, report = tokenise(rows, plain_tokenizer)
    sizes = [len(pair.prompt) for pair in pairs]
    total = sum(2 * len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
    assert (report.total, report.shared) == (total, pytest.approx(2 * sum(sizes) / total))
    assert report.tokens["prompt"]["min"] == min(sizes)
    assert report.tokens["prompt"]["median"] == float(np.median(sizes))
    assert json.loads(json.dumps(report.to_json()))["kept"] == 5
    assert report.lines()[0].startswith("5 rows tokenised with template plain, 5 kept")
    write_pairs(tmp_path / "pairs.parquet", pairs)
    again = read_pairs(tmp_path / "pairs.parquet")
    assert [(p.id, p.prompt.tolist(), dict(p.columns)) for p in again] == [
        (r.id, p.prompt.tolist(), {"score_chosen": 1.0}) for r, p in zip(rows, pairs, strict=True)
    ]
