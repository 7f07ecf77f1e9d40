"Judges: strengths from wins, the preferred half, and what a server may do wrong"
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from affectgpt_r1.endpoints import ChatEndpoint, NoReplyError, RefusedError, ReplyCache
from affectgpt_r1.judges import (
    EndpointJudge, bradley_terry, clip_parts, likelihood_judge, perception_reward)


def shorter(row, a, b): return float(len(a) < len(b))


def test_bradley_terry():
    true = np.array([4., 2., 1., .5])
    wins = 1e4 * true[:, None] / np.add.outer(true, true) * (1 - np.eye(4))
    found = bradley_terry(wins, prior=1e-6)
    assert found / found[2] == pytest.approx(true, rel=1e-3)
    wins = np.random.default_rng(0).random((6, 6)) * (1 - np.eye(6))
    s = bradley_terry(wins, prior=1e-9)
    expected = (wins + wins.T) * s[:, None] / np.add.outer(s, s)
    assert expected.sum(1) == pytest.approx(wins.sum(1), abs=1e-5)   # wins expected are wins seen
    assert bradley_terry(np.zeros((3, 3))) == pytest.approx(np.ones(3))   # nothing said: all alike
    ladder = bradley_terry(np.triu(np.ones((8, 8)), 1))
    assert np.isfinite(ladder).all() and (np.diff(ladder) < 0).all()   # who never loses, too


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8])
def test_perception_gives_1_to_the_preferred_half(n):
    texts = ["x" * (k + 1) for k in range(n)]
    want = [1.] * (n // 2) + [0.] * (n - n // 2)
    f = perception_reward(shorter)
    assert f(texts, prompts=["?"] * n) == want
    assert f(texts[::-1], name=["a"] * n) == want[::-1]
    order = np.random.default_rng(n).permutation(2 * n)   # two clips, mixed up
    names = ["a" if i < n else "b" for i in order]
    mixed = f([(texts * 2)[i] for i in order], name=names, prompts=["same"] * 2 * n)
    assert mixed == [(want * 2)[i] for i in order]


def test_the_judge_sees_its_row_and_may_abstain():
    rows = []
    def judge(row, a, b):
        rows.append(row)
        return None if row["name"] == "b" else 1.
    prompts = [[{"role": "user", "content": "?"}]] * 4
    f = perception_reward(judge)
    columns = dict(labels=[["sad"]] * 4, trainer_state=None, completion_ids=[[1]] * 4)
    found = f(["1", "2", "1", "2"], prompts=prompts, name=["a", "a", "b", "b"], **columns)
    assert found == [1, 0, None, None]
    assert rows[0].keys() == {"prompt", "name", "labels", "completion_ids"}
    assert rows[0]["prompt"] == prompts[0]
    assert f(["1", "1"], name=["b", "b"]) == [.5, .5]
    assert len(rows) == 2   # equal texts are not shown to the judge
    assert f(["1"], name=["a"]) == [None]
    def unsure(row, a, b): return 2
    with pytest.raises(ValueError, match="a probability or None"):
        perception_reward(unsure)(["1", "2"], name=["a"] * 2)
    with pytest.raises(ValueError, match="column `name`"): f(["1", "2"])


# servers

class Endpoint(ThreadingHTTPServer):
    """An OpenAI-compatible server that follows a script, then says A

    Each entry is a status, a body or a number of seconds to wait.
    """
    daemon_threads = True
    def __init__(self, *script):
        self.script, self.asked, self.headers_seen = list(script), [], []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
    @property
    def url(self): return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        self.server.headers_seen.append(self.headers)
        step = self.server.script.pop(0) if self.server.script else said("A")
        if isinstance(step, float):
            time.sleep(step)
            step = said("A")
        self.send_response(step if isinstance(step, int) else 200)
        self.end_headers()
        try: self.wfile.write(b"" if isinstance(step, int) else step)
        except BrokenPipeError: pass   # the client has given up
    def log_message(self, *args): pass


def said(content): return json.dumps({"choices": [{"message": {"content": content}}]}).encode()


@pytest.fixture
def endpoint():
    servers = []
    def start(*script):
        servers.append(Endpoint(*script))
        return servers[-1]
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def judge_of(server, **settings):
    return EndpointJudge(server.url, "m", **dict(timeout=.5, pause=.01) | settings)


row = {"name": "clip", "prompt": "Which emotions?"}


def test_endpoint_asks_once_for_each_pair(endpoint, tmp_path):
    server, cache = endpoint(), tmp_path/"new"/"verdicts.jsonl"
    judge = judge_of(server, key="k", cache=cache)
    p = judge(row, "sad", "happy")
    assert p in (0., 1.)
    assert judge(row, "sad", "happy") == p and judge(row, "happy", "sad") == 1 - p
    assert len(server.asked) == 1
    path, body = server.asked[0]
    assert path == "/v1/chat/completions" and body["model"] == "m" and body["temperature"] == 0
    assert server.headers_seen[0]["Authorization"] == "Bearer k"
    parts = body["messages"][0]["content"]
    assert parts[0] == {"type": "text", "text": "Which emotions?"}
    assert all(x in parts[-1]["text"] for x in ("sad", "happy", "A or B"))
    assert judge_of(server, cache=cache)(row, "sad", "happy") == p
    assert len(server.asked) == 1   # from the disk
    judge(dict(row, name="other"), "sad", "happy")
    assert len(server.asked) == 2   # another clip, another verdict


def test_cache_of_verdicts(tmp_path):
    "Half a line at the end is dropped, from the file too; anything else that is broken is an error"
    path = tmp_path/"verdicts.jsonl"
    path.write_text('["x", true]\n{"half')
    cache = ReplyCache(path)
    assert len(cache) == 1 and path.read_text() == '["x", true]\n'
    assert cache.recall("y", lambda: None) is None and len(cache) == 1   # not understood, not kept
    assert cache.recall("y", lambda: False) is False
    assert ReplyCache(path).recall("y", lambda: "asked again") is False
    for broken in ('{"half\n["x", true]\n', '["x"]\n', '[["x"], true]\n', '3\n'):
        path.write_text('["x", true]\n' + broken)
        with pytest.raises(ValueError, match="verdicts.jsonl, line 2, is not a kept reply"):
            ReplyCache(path)


def test_cache_of_many_threads(tmp_path):
    cache = ReplyCache(tmp_path/"verdicts.jsonl")
    def ask_many(start):
        for i in range(start, 200): cache.recall(str(i), lambda: "x" * 500)
    threads = [threading.Thread(target=ask_many, args=(start,)) for start in (0, 50, 100, 150)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(cache) == len(ReplyCache(tmp_path/"verdicts.jsonl")) == 200


def test_endpoint_has_no_favourite_place(endpoint):
    "A judge that always says A prefers either text in about half of the pairs"
    judge = judge_of(endpoint())
    wins = [judge(row, f"text {i}", f"other {i}") for i in range(60)]
    assert 15 < sum(wins) < 45


TROUBLE = [500, 503, 429, b"<html>", b"{}", b'{"choices": []}', said(None), said(""), b"", 1.]


@pytest.mark.parametrize("trouble", TROUBLE)
def test_endpoint_asks_again(endpoint, trouble):
    "After an error, garbage or silence, a second attempt"
    server = endpoint(trouble)
    assert judge_of(server)(row, "a", "b") in (0., 1.) and len(server.asked) == 2


@pytest.mark.parametrize("trouble", [500, b"<html>", said(None), .7])
def test_endpoint_gives_up(endpoint, trouble, monkeypatch):
    "After `retries` attempts with growing pauses; then the server rests, and is asked again later"
    pauses, sleep = [], time.sleep
    def noted(seconds):
        pauses.append(seconds)
        sleep(seconds)
    monkeypatch.setattr(time, "sleep", noted)
    server = endpoint(*[trouble] * 3)
    judge = judge_of(server, timeout=.3)
    with pytest.warns(UserWarning, match="no usable reply in 3 attempts.*not asked for 0.3 s"):
        assert judge(row, "a", "b") is None
    assert len(server.asked) == 3 and [p for p in pauses if p < .1] == [.01, .02]
    assert judge(row, "a", "c") is None and len(server.asked) == 3
    time.sleep(.35)
    assert judge(row, "a", "b") in (0., 1.) and len(server.asked) == 4   # no verdict was not kept


def test_endpoint_that_is_not_there():
    judge = EndpointJudge("http://127.0.0.1:9", "m", timeout=5, pause=.01)
    with pytest.warns(UserWarning, match="no usable reply"):
        found = perception_reward(judge)(["a", "b", "c"], prompts=["?"] * 3)
    assert found == [None] * 3


def test_endpoint_cannot_judge_a_clip(endpoint):
    server = endpoint(413, said("Both are fine."), said("I say B."))
    judge = judge_of(server)
    assert judge(row, "a", "b") is None and judge(row, "a", "b") is None   # refused; undecided
    assert len(server.asked) == 2
    assert judge(row, "a", "b") in (0., 1.)


@pytest.mark.parametrize("reply,first_wins", [
    ("A", True), ("B", False), (" **B**.\n", False), ("A is louder, so I say B", False),
    ("Answer: __A__", True), ("I prefer A to the other", None), ("Both", None), ("CAB", None)])
def test_the_verdict_is_the_last_word(endpoint, reply, first_wins):
    judge = judge_of(endpoint(said(reply)))
    assert judge._ask(row, "a", "b") is first_wins


@pytest.mark.parametrize("status", [401, 403, 404])
def test_endpoint_set_up_wrongly(endpoint, status):
    message = f"HTTP {status}; check the address, the key and the model 'm'"
    with pytest.raises(ValueError, match=message): judge_of(endpoint(status))(row, "a", "b")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000/v1", "ftp://x/v1", "/v1"])
def test_only_addresses_of_the_web(url):
    with pytest.raises(ValueError, match="must begin with http:// or https://"):
        ChatEndpoint(url, "m")


def test_errors_of_the_client(endpoint):
    url = endpoint(413, 500, 500).url
    client = ChatEndpoint(url, "m", timeout=5, retries=2, pause=.01, key="secret")
    assert "secret" not in repr(client)
    with pytest.raises(RefusedError, match="HTTP 413; 'm' does not take this question"):
        client.ask("?", 8)
    with pytest.raises(NoReplyError, match=r"in 2 attempts \(HTTP 500\)"): client.ask("?", 8)
    with pytest.raises(NoReplyError, match="it rests"): client.ask("?", 8)
    assert issubclass(NoReplyError, ValueError) and issubclass(RefusedError, ValueError)


def test_without_the_openai_package():
    "Everything imports; only the client says what to install"
    code = ("import sys; sys.modules['openai'] = None\n"
            "from affectgpt_r1 import evaluate, judges, rewards\n"
            "try: judges.EndpointJudge('http://x/v1', 'm')\n"
            "except ImportError as error: print(error)")
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "pip install 'affectgpt_r1[judges]'" in run.stdout


def test_endpoint_in_a_batch(endpoint):
    "Several questions at once, and the same reward as with one after the other"
    class Longer(EndpointJudge):
        def _ask(self, row, a, b): return len(a) > len(b)
    texts = ["x" * (k + 1) for k in range(8)] * 3
    names = [n for n in "abc" for _ in range(8)]
    reward = perception_reward(Longer("http://x", "m", workers=8))
    assert reward(texts, name=names) == ([0.] * 4 + [1.] * 4) * 3


def test_what_the_judge_is_shown(tmp_path):
    (tmp_path/"v.mp4").write_bytes(b"video")
    (tmp_path/"a.wav").write_bytes(b"audio")
    clip = {"type": "video", "video": str(tmp_path/"v.mp4"), "audio": str(tmp_path/"a.wav"),
            "text": None}
    question = {"type": "text", "video": None, "audio": None, "text": "Which?"}
    video, audio, text = clip_parts({"prompt": [{"role": "user", "content": [clip, question]}]})
    assert video["video_url"]["url"] == "data:video/mp4;base64,dmlkZW8="
    assert audio["input_audio"] == {"data": "YXVkaW8=", "format": "wav"}
    assert text["text"] == "Which?"
    with pytest.raises(KeyError, match="the trainer gave none"): clip_parts({"name": "clip"})
    assert clip_parts({"prompt": "Which?"}) == [{"type": "text", "text": "Which?"}]
    gone = dict(clip, video=str(tmp_path/"gone.mp4"))
    with pytest.raises(FileNotFoundError, match="gone.mp4"):
        clip_parts({"prompt": [{"content": [gone]}]})


def test_likelihood_judge_scores_each_text_once():
    seen = []
    def score(row, text):
        seen.append(text)
        return None if text == "?" else -float(len(text))
    judge, texts = likelihood_judge(score), ["a", "bb", "ccc", "dddd"]
    assert perception_reward(judge)(texts, prompts=["p"] * 4) == [1, 1, 0, 0]
    assert sorted(seen) == texts
    p, long = dict(prompt="p"), "b" * 2000
    assert judge(p, "a", "?") is None
    assert judge(p, "a", long) > .99 and judge(p, long, "a") < .01
    assert judge(p, "a", "bb") == pytest.approx(1 - judge(p, "bb", "a"))
