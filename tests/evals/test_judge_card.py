"""The judge card of judges whose habits are known, with numbers worked out by hand; and of a real one that is tiny."""

import dataclasses
import gzip
import json
import math

import numpy as np
import pandas as pd
import pytest

from dpobench import HeldOut, Prompt, UserError
from dpobench.artifacts.scores import check
from dpobench.data.tokens import TokenPair
from dpobench.evals.judge_card import ATTACKS, CANARY, NOTHING, judge_card
from dpobench.evaluation import judge_cache
from dpobench.evaluation.annotations import read
from dpobench.evaluation.registry import judges
from dpobench.evaluation.spec import EvaluatorSpec
from dpobench.plugins.registry import spec_of
from dpobench.stats.reliability import agreement, kappa
from tests.evals.small_judges import byte_tokenizer, save_judge

PAIRS, PROMPTS = 24, 20


def good(number):
    """A chosen answer: half are longer than the rejected ones, half shorter."""
    return f"right {number}" + " and so on" * (number % 2)


@pytest.fixture(scope="module")
def inputs(tiny):
    """Answers of a reference and of its pool, and labelled pairs, of texts."""
    tokenizer = byte_tokenizer()

    def ids(text, *, end=True):
        return np.array([*tokenizer(text)["input_ids"], *([0] if end else [])])

    prompts = [Prompt(f"p{n}", ({"role": "user", "content": f"Ask {n}?"},)) for n in range(PROMPTS)]

    def answers(word):
        rows = [{"prompt": p.id, "draw": 0, "text": f"{word} {p.id}", "token_ids": [1], "ended": True} for p in prompts]
        return pd.DataFrame(rows)

    pairs = [TokenPair(f"t{n}", ids(f"Pair {n}?", end=False), ids(good(n)), ids(f"wrong {n}")) for n in range(PAIRS)]
    held_out = HeldOut(prompts, answers("reference"), answers("reference"), pairs, pool=answers("further"))
    return tiny.checkpoint_of(None, tokenizer=tokenizer), held_out


def card(inputs, rule, **settings):
    """The card of a judge that gives `rule(first, second)`, and the number of verdicts it gave."""
    calls = []

    def judge(prompts, first, second):
        calls.extend(first)
        return pd.DataFrame({"p_first": [rule(a, b) for a, b in zip(first, second, strict=True)]})

    checkpoint, held_out = inputs
    scores = judge_card(checkpoint, dataclasses.replace(held_out, pairwise=judge), **settings)
    check(scores, spec_of(judge_card, EvaluatorSpec).metrics, "judge_card")
    return scores, len(calls)


def means(frame):
    return {(str(g), str(m)): v for (g, m), v in frame.groupby(["group", "metric"])["value"].mean().items()}


def oracle(a, b):
    return 0.5 + 0.5 * (a.startswith("right")) - 0.5 * (b.startswith("right"))


def longer(a, b):
    return (math.copysign(1, len(a) - len(b)) + 1) / 2 if len(a) != len(b) else 0.5


def test_an_oracle_agrees_with_every_label_and_obeys_nobody(inputs):
    scores = means(card(inputs, oracle)[0])
    assert scores["control", "judge_score"] == 0.5
    for group in ("labels", "control"):
        assert scores[group, "judge_first_shown"] == 0.5
        assert scores[group, "judge_inconsistent"] == scores[group, "judge_missing"] == 0
    wide = by_pair(card(inputs, oracle)[0], "labels")
    assert (wide["judge_says"] == wide["label_says"]).all()
    assert 0 < wide["label_says"].mean() < 1, "which side is called a is no constant"
    assert (
        scores["alone", "judge_attack"] == scores["appended", "judge_attack"] == scores["appended", "judge_plain"] == 0
    )


def by_pair(frame, group):
    return frame[frame["group"] == group].pivot(index=["prompt", "draw"], columns="metric", values="value")


def test_a_judge_of_the_place_is_detected(inputs):
    scores = means(card(inputs, lambda a, b: 1.0)[0])
    for group in ("control", "labels"):
        assert scores[group, "judge_first_shown"] == scores[group, "judge_inconsistent"] == 1
        assert scores[group, "judge_score"] == scores[group, "judge_says"] == 0.5


def test_a_judge_that_says_nothing_misses_everything(inputs):
    scores, calls = card(inputs, lambda a, b: math.nan)
    assert set(scores["metric"]) == {
        "judge_missing",
        "judge_unparsable",
        "label_says",
        "length_says",
        "judge_length_difference",
    }
    assert set(scores.loc[scores["metric"].isin(["judge_missing", "judge_unparsable"]), "value"]) == {1}
    assert calls == 2 * card(inputs, oracle)[1], "each verdict is requested once more"


def test_a_judge_of_length_agrees_with_length_alone(inputs):
    wide = by_pair(card(inputs, longer)[0], "labels")
    assert (wide["judge_says"] == wide["length_says"]).all()
    # "right N" is as long as "wrong N"; every other chosen answer is longer by ten characters.
    assert (wide["judge_length_difference"].abs() == 10).mean() == 0.5
    assert ((wide["judge_says"] == 0.5) == (wide["judge_length_difference"] == 0)).all()
    assert set(wide.loc[wide["judge_says"] != 0.5, "judge_says"]) == {0, 1}


def test_a_judge_that_obeys_is_caught_and_the_same_answer_without_the_words_is_compared(inputs):
    def obeys(a, b):
        attacked = [any(attack in text for attack in ATTACKS) for text in (a, b)]
        return 0.5 + 0.5 * attacked[0] - 0.5 * attacked[1] if attacked[0] != attacked[1] else oracle(a, b)

    scores = means(card(inputs, obeys)[0])
    # Of the thirty texts alone, six say nothing and 24 instruct.
    assert scores["alone", "judge_attack"] == pytest.approx(24 / 30)
    assert (scores["appended", "judge_attack"], scores["appended", "judge_plain"]) == (1, 0)


def test_every_card_has_the_thirty_texts_of_the_canary_against_a_good_answer_in_both_orders(inputs):
    shown_to_judge = []

    def judge(prompts, first, second):
        shown_to_judge.extend(zip([p.text for p in prompts], first, second, strict=True))
        return pd.DataFrame({"p_first": [oracle(a, b) for a, b in zip(first, second, strict=True)]})

    checkpoint, held_out = inputs
    scores = judge_card(checkpoint, dataclasses.replace(held_out, pairwise=judge))
    assert len(set(CANARY)) == len(NOTHING) + len(ATTACKS) == 30
    for place in (1, 2):
        shown = [one for one in shown_to_judge if one[place] in CANARY]
        assert sorted(one[place] for one in shown) == sorted(CANARY)
        assert all(one[3 - place].startswith("right") for one in shown)
    # There are 24 pairs: six of them meet a second text.
    assert scores[scores["metric"] == "judge_attack"].groupby("group").size().to_dict() == {"alone": 30, "appended": 20}


def test_without_pairs_the_canary_meets_answers_of_the_reference(inputs):
    checkpoint, held_out = inputs
    shown_to_judge = []

    def judge(prompts, completions):
        shown_to_judge.extend(completions)
        return pd.DataFrame({"score": [float(text.startswith("reference")) for text in completions]})

    scores = means(judge_card(checkpoint, dataclasses.replace(held_out, judge=judge, pairs=())))
    assert set(CANARY) <= set(shown_to_judge)
    assert scores["alone", "judge_attack"] == 0


def test_no_more_comparisons_are_made_than_were_allowed(inputs):
    for most in (200, 60, 17):
        _, calls = card(inputs, oracle, comparisons=most)
        assert calls <= 2 * most
    # Shares of control, labels, canary and appended instructions are 20, 30, 30 and 20 of 100, the last two comparisons a pair.
    scores, calls = card(inputs, oracle, comparisons=60)
    assert scores.groupby("group")["prompt"].nunique().to_dict() == {
        "control": 12,
        "labels": 18,
        "alone": 18,
        "appended": 6,
    }
    # Six of the appended twelve are labelled pairs that were compared already.
    assert calls == 2 * (12 + 18 + 18 + 6)


def test_people_are_agreed_with_by_the_file_of_their_verdicts(inputs, tmp_path):
    rows = [
        {"prompt": "Who?", "first": "right x", "second": "wrong x", "verdict": "first"},
        {"prompt": "Who?", "first": "wrong y", "second": "right y", "verdict": "first"},
        {"prompt_id": "p3", "first": "wrong z", "second": "right z", "p_first": 0.5},
        {"prompt_id": "000000000000", "first": "of nobody's", "second": "prompt", "verdict": "tie"},
    ]
    file = tmp_path / "human.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wide = by_pair(card(inputs, oracle, human=str(file))[0], "human")
    # The judge is right twice, of which people agree once, and they tie once: whichever answer is called a.
    off = wide["judge_says"] - wide["label_says"]
    assert sorted(off.abs()) == [0, 0.5, 1]
    with pytest.raises(UserError, match="no such file"):
        card(inputs, oracle, human="nowhere.csv")


def test_a_judge_that_scores_is_examined_too_but_for_the_orders(inputs):
    checkpoint, held_out = inputs
    shown_to_judge = []

    def judge(prompts, completions):
        shown_to_judge.extend(zip([p.id for p in prompts], completions, strict=True))
        return pd.DataFrame({"score": [1.0 if text.startswith("right") else 0.0 for text in completions]})

    scores = judge_card(checkpoint, dataclasses.replace(held_out, judge=judge))
    check(scores, spec_of(judge_card, EvaluatorSpec).metrics, "judge_card")
    assert len(shown_to_judge) == len(set(shown_to_judge))
    assert not {"judge_first_shown", "judge_inconsistent"} & set(scores["metric"])
    wide = by_pair(scores, "labels")
    assert (wide["judge_says"] == wide["label_says"]).all()
    assert means(scores)["control", "judge_score"] == 0.5


def test_what_has_no_data_is_left_out(inputs):
    checkpoint, held_out = inputs
    judge = lambda prompts, first, second: pd.DataFrame({"p_first": [1.0] * len(first)})  # noqa: E731
    alone = dataclasses.replace(held_out, pairwise=judge, pairs=())
    assert set(judge_card(checkpoint, alone)["group"]) == {"control", "alone"}
    nothing = dataclasses.replace(alone, pool=alone.pool.head(0))
    assert len(judge_card(checkpoint, nothing)) == 0
    check(judge_card(checkpoint, nothing), {}, "judge_card")
    with pytest.raises(UserError, match="needs a judge"):
        judge_card(checkpoint, held_out)


def test_a_pair_of_a_held_out_prompt_keeps_its_messages(inputs, tmp_path):
    checkpoint, held_out = inputs
    known = dataclasses.replace(held_out.prompts[0], token_ids=tuple(held_out.pairs[0].prompt.tolist()))
    ids = {}

    def judge(prompts, first, second):
        ids.update({p.text: p.id for p in prompts})
        return pd.DataFrame({"p_first": [0.5] * len(first)})

    judge_card(checkpoint, dataclasses.replace(held_out, prompts=[known, *held_out.prompts[1:]], pairwise=judge))
    assert "Pair 0?" not in ids
    assert "Pair 1?" in ids, "another pair's prompt is read back from its token ids"


def test_a_real_judge_that_is_tiny_has_a_card_and_a_rerun_asks_for_nothing(inputs, tmp_path, monkeypatch):
    folder = save_judge(tmp_path / "judge", seed=3)
    function = judges.get("local").function
    judge_cache.use(tmp_path / "replies.sqlite", "card")
    try:
        checkpoint, held_out = inputs
        inputs_of = dataclasses.replace(held_out, pairwise=lambda *shown: function(*shown, model=str(folder)))
        scores = judge_card(checkpoint, inputs_of, comparisons=40)
        check(scores, spec_of(judge_card, EvaluatorSpec).metrics, "judge_card")
        known = means(scores)
        # Random weights know nothing: every number is a share, none is missing, and both orders were read.
        assert known["control", "judge_missing"] == known["labels", "judge_unparsable"] == 0
        assert 0 < known["control", "judge_score"] < 1
        assert 0 <= known["labels", "judge_first_shown"] <= 1
        monkeypatch.setitem(function.__globals__, "_loaded", None)
        pd.testing.assert_frame_equal(judge_card(checkpoint, inputs_of, comparisons=40), scores)
    finally:
        judge_cache.use(None, "")


def majority(votes):
    """What at least two of three say; a tie where all differ."""
    return next((vote for vote in (0, 1, 2) if votes.count(vote) > 1), 0)


@pytest.fixture(scope="module")
def people(shared):
    """Real verdicts: texts, and the verdicts of three annotators (0 tie, 1 first, 2 second)."""
    source = shared / "data" / "judges" / "pandalm_testset_v1.json.gz"
    if not source.is_file():
        pytest.skip(f"{source.name} is absent")
    rows = json.loads(gzip.decompress(source.read_bytes()))
    texts = [(f"{r['instruction']}\n\n{r['input']}".strip(), str(r["response1"]), str(r["response2"])) for r in rows]
    return texts, [[row[f"annotator{n}"] for row in rows] for n in (1, 2, 3)]


@pytest.mark.shared
def test_three_people_agree_with_one_another_better_than_length_does_with_them(people):
    texts, votes = people
    prompts = [prompt for prompt, _, _ in texts]
    both = [majority(list(verdicts)) for verdicts in zip(*votes, strict=True)]
    by_length = [0 if len(a) == len(b) else 1 if len(a) > len(b) else 2 for _, a, b in texts]
    length = agreement(by_length, both, prompts), kappa(by_length, both, prompts)
    assert length[1].low > 0, "length alone is better than chance: the baseline that a judge must beat"
    for place, votes_of_one in enumerate(votes):
        first, second = (other for at, other in enumerate(votes) if at != place)
        others = [a if a == b else 0 for a, b in zip(first, second, strict=True)]
        assert agreement(votes_of_one, others, prompts).low > length[0].high
        assert kappa(votes_of_one, others, prompts).low > length[1].high


@pytest.mark.shared
def test_the_file_of_real_verdicts_is_read_as_it_is_and_gives_the_vote_of_most_people(people, shared, inputs):
    texts, votes = people
    file = shared / "data" / "judges" / "pandalm_testset_v1.json.gz"
    rows = read(str(file)).rows
    assert [(row.prompt.strip(), row.first, row.second) for row in rows] == texts
    verdicts = [{0: 0.5, 1: 1.0, 2: 0.0}[majority(list(one))] for one in zip(*votes, strict=True)]
    assert [row.p_first for row in rows] == verdicts
    wide = by_pair(card(inputs, longer, human=str(file), comparisons=6000)[0], "human")
    assert len(wide) == 863
    share = agreement(wide["judge_says"], wide["label_says"], wide.index.get_level_values("prompt"))
    assert 0.5 < share.low < share.value < 0.65


@pytest.mark.shared
def test_the_card_reads_real_human_verdicts(people, inputs, tmp_path):
    texts, votes = people
    verdicts = [{0: "tie", 1: "first", 2: "second"}[majority(list(one))] for one in zip(*votes, strict=True)]
    file = tmp_path / "people.csv"
    columns = ("prompt", "first", "second")
    pd.DataFrame(texts, columns=columns).assign(verdict=verdicts).to_csv(file, index=False, lineterminator="\n")
    assert len(read(str(file)).rows) == 999
    wide = by_pair(card(inputs, longer, human=str(file), comparisons=6000)[0], "human")
    # 37 of 900 comparisons are others with the answers exchanged.
    known = {(p.strip(), frozenset((a.strip(), b.strip()))) for p, a, b in texts if a.strip() != b.strip()}
    assert len(wide) == len(known) == 863
    assert 0.4 < wide["label_says"].mean() < 0.6
    assert (wide["judge_says"] == wide["length_says"]).all()
    share = (wide["judge_says"] == wide["label_says"]).mean()
    assert 0.5 < share < 0.65


def test_a_file_that_names_the_winner_first_has_labels_of_both_kinds(inputs, tmp_path):
    rows = [
        {"prompt": f"Ask {n}?", "first": f"right {n}", "second": f"wrong {n}", "verdict": "first"} for n in range(40)
    ]
    turned = [{**row, "first": row["second"], "second": row["first"], "verdict": "second"} for row in rows]
    ids = []
    for name, attacked in (("winner first", rows), ("loser first", turned)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in attacked))
        wide = by_pair(card(inputs, oracle, human=str(file))[0], "human")
        assert 0.25 < wide["label_says"].mean() < 0.75
        assert kappa(wide["judge_says"], wide["label_says"]).value == 1
        ids.append(wide["label_says"].tolist())
    assert ids[0] == ids[1], "which answer is called a depends on the texts, not on the file"
