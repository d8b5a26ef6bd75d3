"""The store of judges' replies: content by key, an account that never passes its limit, many processes, kills, damage."""

import logging
import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from dpobench import UserError
from dpobench.evaluation import judge_cache
from dpobench.evaluation.judge_cache import Limits, Replies, Spent


@pytest.fixture
def store(tmp_path):
    replies = Replies(tmp_path / "cache" / "replies.sqlite", "experiment")
    yield replies
    replies.close()


def test_a_reply_comes_back_whole_and_outlives_its_store(store):
    entry = {"raw": "[[A]] \u00e9 \U0001f600", "tokens": 3, "cost": 0.25, "inner": {"x": None}}
    store.put({"k": entry, "l": {}})
    store.close()
    again = Replies(store.file, "another account")
    assert again.get(["k", "l", "m", "k"]) == {"k": entry, "l": {}}
    again.close()


def test_more_keys_than_one_statement_holds_are_read(store):
    store.put({str(n): {"n": n} for n in range(1201)})
    assert store.get(map(str, range(1201))) == {str(n): {"n": n} for n in range(1201)}


def test_a_key_depends_on_content_and_not_on_its_order():
    assert judge_cache.key(a=1, b=[{"x": "y"}]) == judge_cache.key(b=[{"x": "y"}], a=1)
    assert judge_cache.key(a="1") != judge_cache.key(a=1)
    with pytest.raises(TypeError):
        judge_cache.key(file=Path("somewhere"))


def test_an_amount_that_would_pass_a_limit_is_refused_and_not_charged(store):
    limits = Limits(requests=3, cost=1.0)
    assert store.charge(2, 700, 0.75, limits) == Spent(2, 700, 0.75)
    with pytest.raises(UserError, match=r"budget of 1 cost is used up: 0\.75 spent, 0\.5 more.*Raise the limit"):
        store.charge(1, 10, 0.5, limits)
    assert store.spent() == Spent(2, 700, 0.75)
    assert store.charge(1, 10, 0.25, limits) == Spent(3, 710, 1.0), "a limit may be met exactly"
    with pytest.raises(UserError, match="budget of 3 requests"):
        store.charge(1, limits=limits)
    assert store.charge(tokens=-10) == Spent(3, 700, 1.0), "what was charged too much is given back"


def test_accounts_are_counted_apart(store):
    store.charge(5)
    other = Replies(store.file, "other")
    assert other.spent() == Spent()
    other.close()


def spend(file):
    cache = Replies(file, "experiment")
    done = 0
    for _ in range(40):
        try:
            cache.charge(1, limits=Limits(requests=50))
            done += 1
            cache.put({f"{os.getpid()}-{done}": {"n": done}})
        except UserError:
            pass
    cache.close()
    return done


def test_several_processes_never_pass_the_limit_together(store):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        done = pool.map(spend, [store.file] * 3)
    assert sum(done) == 50 == store.spent().requests


def put_and_die(file):
    cache = Replies(file, "experiment")
    cache.get_or_ask([str(n) for n in range(5)], answer_three_and_die)


def answer_three_and_die(places):
    for place in places:
        if place == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        yield place, {"n": place}


def test_what_came_before_a_kill_is_not_sent_again(store):
    process = multiprocessing.get_context("spawn").Process(target=put_and_die, args=(store.file,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    places_asked = []

    def ask(places):
        places_asked.extend(places)
        return [(place, {"n": place}) for place in places]

    assert store.get_or_ask([str(n) for n in range(5)], ask) == [{"n": n} for n in range(5)]
    assert places_asked == [3, 4]


def test_a_bad_reply_is_requested_twice_and_no_more(store):
    places_asked = []

    def ask(places):
        places_asked.append(places)
        return [(place, {"ok": len(places_asked) > 1 and place == 0}) for place in places]

    replies = [store.get_or_ask(["k", "l", "k"], ask, lambda reply: reply["ok"]) for _ in range(4)]
    assert places_asked == [[0, 1], [0, 1]]
    assert replies[0] == [{"ok": False}] * 3
    assert replies[1] == replies[3] == [{"ok": True}, {"ok": False}, {"ok": True}]


def test_an_error_of_the_moment_is_not_cached(store):
    assert store.get_or_ask(["k"], lambda places: []) == [None]
    assert store.get_or_ask(["k"], lambda places: [(0, {"n": 1})]) == [{"n": 1}]


def test_a_damaged_file_is_moved_aside_with_one_warning(store, caplog):
    store.put({"k": {"n": 1}})
    store.close()
    for tail in ("-wal", "-shm"):
        Path(f"{store.file}{tail}").unlink(missing_ok=True)
    store.file.write_bytes(b"no database at all" * 100)
    with caplog.at_level(logging.WARNING):
        assert store.get(["k"]) == {}
        store.put({"k": {"n": 2}})
    assert store.get(["k"]) == {"k": {"n": 2}}
    assert [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()] == [
        caplog.messages[0]
    ]
    assert (store.file.parent / "replies.sqlite.damaged-1").read_bytes().startswith(b"no database")


def test_a_page_that_rotted_inside_is_noticed_and_moved_aside(store, caplog):
    store.put({str(n): {"text": "x" * 500} for n in range(200)})
    store.close()
    content = bytearray(store.file.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    store.file.write_bytes(content)
    assert store.get(["1"]) == {}
    assert "moved to" in caplog.text


def test_two_who_meet_the_same_damage_move_it_aside_once(store):
    store.file.parent.mkdir()
    store.file.write_bytes(b"rubbish" * 1000)
    other = Replies(store.file, "other")
    store.put({"k": {"n": 1}})
    other._move_aside(sqlite3.DatabaseError("raised before the first one mended it"))
    assert other.get(["k"]) == {"k": {"n": 1}}
    assert len(list(store.file.parent.glob("*.damaged-*"))) == 1
    other.close()


def test_a_place_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "replies.sqlite").mkdir()
    with pytest.raises(UserError, match=r"replies\.sqlite: unable to open"):
        Replies(tmp_path / "replies.sqlite", "a").get(["k"])


def test_a_process_has_one_store_in_memory_unless_another_is_chosen(tmp_path):
    judge_cache.use(None, "fresh")
    judge_cache.current().put({"k": {"n": 1}})
    assert judge_cache.current().get(["k"]) == {"k": {"n": 1}}
    judge_cache.use(tmp_path / "r.sqlite", "a")
    assert judge_cache.current().get(["k"]) == {}
    same = judge_cache.current()
    judge_cache.use(tmp_path / "r.sqlite", "a")
    assert judge_cache.current() is same
    judge_cache.use(None, "")
