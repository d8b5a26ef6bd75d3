"""Judging that is killed half-way: what was answered is never paid for twice, and the account knows all that was sent."""

import multiprocessing
import time
from pathlib import Path

import pytest

from dpobench import Prompt
from dpobench.evaluation import judge_cache
from dpobench.evaluation.pairwise import compare
from dpobench.evaluation.registry import judges

from .endpoint import MODEL, says, serving, slow

pytestmark = pytest.mark.slow
PAIRS, WIDTH, KILLS = 40, 4, 3


def judge_all(address, file):
    """Both orders of all pairs, by the store in a file."""
    judge_cache.use(Path(file), "experiment")
    prompts = [Prompt(f"p{n}", ({"role": "user", "content": f"question {n}"},)) for n in range(PAIRS)]
    calls = {"key": "", "concurrency": WIDTH, "timeout": 30.0, "mode": "text"}

    def judge(*shown):
        return judges.get("api").function(*shown, model=MODEL, base_url=address, calls=calls)

    return compare(judge, prompts, [f"first {n}" for n in range(PAIRS)], [f"second {n}" for n in range(PAIRS)])


def test_a_killed_judge_asks_again_for_what_was_under_way_and_for_nothing_else(tmp_path):
    file = str(tmp_path / "replies.sqlite")
    spawn = multiprocessing.get_context("spawn")
    with serving() as stub:
        stub.otherwise = slow(0.02, says("[[A]]"))
        for _ in range(KILLS):
            before, until = len(stub.requests), time.monotonic() + 60
            process = spawn.Process(target=judge_all, args=(stub.address, file))
            process.start()
            while len(stub.requests) < before + 15 and process.is_alive() and time.monotonic() < until:
                time.sleep(0.002)
            process.kill()
            process.join()
            assert process.exitcode == -9, "it was killed in the middle of its requests"
        try:
            table = judge_all(stub.address, file)
            spent = judge_cache.current().spent()
        finally:
            judge_cache.use(None, "")
        assert table["verdict"].value_counts().to_dict() == {"a": PAIRS, "b": PAIRS}
        # The trial is sent once; a kill costs at most the requests that were under way.
        assert len(stub.trials) == 1
        assert 2 * PAIRS <= len(stub.requests) <= 2 * PAIRS + KILLS * WIDTH
        # A request is on the account before it is sent: it may have been killed in between.
        assert 0 <= spent.requests - len(stub.requests) - len(stub.trials) <= KILLS * WIDTH
