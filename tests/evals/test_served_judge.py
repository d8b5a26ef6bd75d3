"""The judge behind an endpoint against a server that nobody wrote for this test: `transformers serve`, on this machine."""

import importlib.util
import os
import socket
import string
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from dpobench import Prompt, UserError
from dpobench.evals.judges import api as module
from dpobench.evaluation import judge_cache
from dpobench.evaluation.pairwise import compare, summary
from dpobench.evaluation.registry import evaluators, judges

pytestmark = pytest.mark.slow
CALLS = {"key": "", "reply_tokens": 8, "concurrency": 2, "timeout": 60.0, "tries": 3, "shortest_wait": 0.1}
CHAT = "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}judge :{% endif %}"


def save_chat_model(folder, llama):
    """A model of random weights that speaks single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<end>", "<unk>", *string.ascii_letters, *string.digits, "[[A]]", "[[B]]", "[[C]]"]
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", unk_token="<unk>", pad_token="<end>")
    tokenizer.chat_template = CHAT
    llama(vocabulary=len(words), pad_token_id=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny):
    absent = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"{absent[0]} is not installed: pip install 'transformers[serving]' for a server to ask")
    folder = tmp_path_factory.mktemp("served") / "judge"
    save_chat_model(folder, tiny.llama)
    port, log = free_port(), folder.parent / "log.txt"
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--host", "127.0.0.1",
               "--port", str(port), "--device", "cpu", "--log-level", "error"]  # fmt: skip
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder.parent / "home"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with log.open("w") as output:
        process = subprocess.Popen(command, env=os.environ | offline, stdout=output, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 180
        while not is_healthy(port):
            assert process.poll() is None, f"the server ended: {log.read_text()[-2000:]}"
            assert time.monotonic() < until, f"the server is not up after 180 s: {log.read_text()[-2000:]}"
            time.sleep(0.2)
        yield {"base_url": f"http://127.0.0.1:{port}/v1", "model": str(folder)}
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(autouse=True)
def store(tmp_path):
    judge_cache.use(tmp_path / "replies.sqlite", "experiment")
    yield
    judge_cache.use(None, "")


def test_the_server_ignores_logprobs_and_is_requested_in_words(server):
    table = judges.get("api").function(
        [Prompt("p", ({"role": "user", "content": "a b"},))], ["c"], ["d"], **server, calls=CALLS
    )
    assert table["mode"].tolist() == ["text"]
    # Eight tokens at most were written, and the prompt was read: the server's own count.
    assert 8 < table["tokens"][0] < 2000
    assert table["latency"][0] > 0


def test_what_a_random_model_says_is_missing_and_neither_a_half_nor_a_loss(server):
    prompts = [Prompt(f"p{n}", ({"role": "user", "content": f"a {n}"},)) for n in range(3)]

    def pairwise(*shown):
        return judges.get("api").function(*shown, **server, calls=CALLS)

    rows = compare(pairwise, prompts, ["x y", "same", "z"], ["w", "same", "v u"])
    compared = rows[rows["at"] != 1]
    assert set(compared["verdict"]) == {"unparsable"}
    assert compared["p_a"].isna().all()
    assert compared["raw"].str.len().gt(0).all()
    assert rows[rows["at"] == 1]["verdict"].tolist() == ["tie", "tie"]
    results = summary(rows)
    assert results["missing"].tolist() == [1, 0, 1]
    assert results["score"].isna().tolist() == [True, False, True]
    assert (results["worst"].tolist(), results["best"].tolist()) == ([0, 0.5, 0], [1, 0.5, 1])
    # One trial; four comparisons as shown, each sent twice.
    assert judge_cache.current().spent().requests == 1 + 4 * 2
    again = compare(pairwise, prompts, ["x y", "same", "z"], ["w", "same", "v u"])
    assert again["raw"].tolist() == rows["raw"].tolist()
    assert judge_cache.current().spent().requests == 9


def test_a_win_rate_by_it_has_missing_verdicts_only_and_is_refused_as_it_stands(server, tiny):
    samples = tiny.samples_of({"a b": [[3, 4, 0]], "c": [[5, 0]]})
    reference = tiny.samples_of({"a b": [[3, 0]], "c": [[5, 0]]})

    def pairwise(*shown):
        return judges.get("api").function(*shown, **server, calls=CALLS)

    held_out = tiny.held_out_of(samples, reference, pairwise=pairwise)
    winrate = evaluators.get("winrate").function
    with pytest.raises(UserError, match="no verdict on 1 of 2 comparisons with reference"):
        winrate(tiny.checkpoint_of(None), held_out)
    table = winrate(tiny.checkpoint_of(None), held_out, most_missing=1.0)
    # The second prompt's answers are identical, and tie without a call; the first has no row.
    assert tiny.values(table, "win_rate") == [0.5]
    assert tiny.values(table, "missing") == [1, 0]
    assert (tiny.values(table, "win_rate_worst"), tiny.values(table, "win_rate_best")) == ([0, 0.5], [1, 0.5])
    assert judge_cache.current().spent().requests == 1 + 2 * 2


def test_another_model_than_the_one_served_is_refused_by_name(server):
    with pytest.raises(UserError, match=r"does not answer as model 'another'.*requested 'another'"):
        module.check(base_url=server["base_url"], model="another", calls=CALLS)
