"Evaluation: predictions that survive anything, and baselines and records that say what they should"
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from affectgpt_r1.evaluate import (
    EndpointLabels, best_of, constant_baseline, frequency_baseline, missing_keys, predict_clips,
    read_labels, score_predictions, summary_table, write_metrics)
from affectgpt_r1.labels import make_target
from affectgpt_r1.metrics import ew_score
from affectgpt_r1.rewards import answer_labels
from affectgpt_r1.wheels import load_wheels

wheels = load_wheels()
rows = [dict(name=f"c{i}", video=f"{i}.mp4", audio=f"{i}.wav", subtitle="x" * (i % 5),
             labels=["sad"]) for i in range(23)]


def prompt(row, mode): return [{"role": "user", "content": row["video"] + row["subtitle"]}]


class Letters:
    """A processor of single letters, with prompts of different lengths, padded on the left

    Token 0 pads, 1 ends, 2 is special.
    """
    placeholder_ids = [2]
    fail_at, calls = None, 0

    def apply_chat_template(self, chats, **kwargs):
        import torch
        if self.calls == self.fail_at: raise KeyboardInterrupt
        self.calls += 1
        ids = [[3 + ord(c) % 20 for c in chat[0]["content"]] for chat in chats]
        width = max(map(len, ids))
        mask = [[0] * (width - len(x)) + [1] * len(x) for x in ids]
        ids = [[0] * (width - len(x)) + x for x in ids]
        return dict(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))

    def batch_decode(self, ids, skip_special_tokens=False):
        assert skip_special_tokens
        return [" ".join(str(int(i)) for i in row if i > 1) for row in ids]


class Slow(Letters):
    def apply_chat_template(self, chats, **kwargs):
        time.sleep(.02)
        return super().apply_chat_template(chats, **kwargs)


def small_model():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=23, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=.5, pad_token_id=0,
        eos_token_id=1, bos_token_id=None)
    return transformers.Qwen2ForCausalLM(config).train()


@pytest.fixture(scope="module")
def model(): return small_model()


def run(model, processor=None, rows=rows, **more):
    how = dict(prompt=prompt, batch_size=5, max_new_tokens=6) | more
    return predict_clips(model, processor or Letters(), rows, **how)


HOW = dict(greedy=dict(), sampled=dict(sample=True, seed=3), several=dict(sample=True, answers=3),
           shuffled=dict(sample=True, shuffle_media=True))


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_interrupted_equals_unbroken(model, tmp_path, how):
    unbroken, broken = tmp_path/"whole.jsonl", tmp_path/"broken.jsonl"
    whole = run(model, out=unbroken, **how)
    processor = Letters()
    for processor.fail_at in (0, 2, 3):   # before anything, after two batches, after one more
        processor.calls = processor.fail_at if processor.fail_at == 0 else processor.calls
        with pytest.raises(KeyboardInterrupt): run(model, processor, out=broken, **how)
    with open(broken, "ab") as f: f.write(b'{"name": "c15", "re')
    processor.fail_at = None
    assert run(model, processor, out=broken, **how).equals(whole)
    assert whole["name"].tolist() == [r["name"] for r in rows for _ in range(how.get("answers", 1))]
    assert broken.read_bytes() == unbroken.read_bytes()
    assert run(model, Letters(), out=None, **how).equals(whole)


def killed_runs(out, sizes):
    "Runs of prediction, each killed when the file has so many bytes"
    model = small_model()
    for size in map(int, sizes):
        child = os.fork()
        if not child:
            run(model, Slow(), out=out, **HOW["several"])
            os._exit(0)
        while not os.path.exists(out) or os.path.getsize(out) < size: time.sleep(.002)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it had ended before it was killed"


def test_killed_at_three_random_points(model, tmp_path):
    whole = run(model, out=tmp_path/"whole.jsonl", **HOW["several"])
    written, out = (tmp_path/"whole.jsonl").read_bytes(), tmp_path/"killed.jsonl"
    points = sorted(np.random.default_rng().integers(1, len(written) * .8, 3).tolist())
    code = "import sys, test_evaluate; test_evaluate.killed_runs(sys.argv[1], sys.argv[2:])"
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": f"{here}:{here.parent}", "TQDM_DISABLE": "1"}
    # a process of its own, because it forks
    subprocess.run([sys.executable, "-c", code, out, *map(str, points)], check=True, env=env)
    left = out.read_bytes()
    assert points[-1] <= len(left) < len(written)
    assert run(model, out=out, **HOW["several"]).equals(whole) and out.read_bytes() == written


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_batches_do_not_matter(model, tmp_path, how, size):
    run(model, out=tmp_path/"a.jsonl", **how)
    run(model, out=tmp_path/"b.jsonl", batch_size=size, **how)
    assert (tmp_path/"a.jsonl").read_bytes() == (tmp_path/"b.jsonl").read_bytes()


def test_samples_follow_the_probabilities(model):
    "First tokens of 400 samples of one clip against the model's distribution, cut at top_p"
    torch, n = pytest.importorskip("torch"), 400
    how = dict(max_new_tokens=1, sample=True, answers=n, batch_size=n)
    table = run(model, rows=rows[:1], **how)
    chat = Letters().apply_chat_template([prompt(rows[0], "answer")])
    with torch.no_grad(): scores = model.eval()(**chat).logits[0, -1]
    model.train()
    scores[2] = -torch.inf   # the placeholder
    p, order = scores.softmax(-1).sort(descending=True)
    kept = order[p.cumsum(0) - p < .9]
    wanted = torch.zeros(23).index_put((kept,), p[:len(kept)] / p[:len(kept)].sum())
    tokens = torch.tensor([int(t or 1) for t in table["reply"]])   # empty: the end, or padding
    found = torch.bincount(tokens, minlength=23) / n
    assert (found - wanted).abs()[2:].max() < .1 and not found[wanted == 0][2:].any()


def test_any_cut_of_the_file(model, tmp_path):
    path = tmp_path/"a.jsonl"
    run(model, out=path, sample=True)
    written = path.read_bytes()
    for cut in np.random.default_rng(0).integers(0, len(written), 5):
        path.write_bytes(written[:cut])
        run(model, out=path, sample=True)
        assert path.read_bytes() == written


def test_a_finished_file_is_only_read(model, tmp_path):
    first = run(model, out=tmp_path/"a.jsonl")
    processor = Letters()
    assert run(model, processor, out=tmp_path/"a.jsonl").equals(first) and processor.calls == 0


def test_replies_are_only_what_is_new(model):
    replies = [list(map(int, t.split())) for t in run(model, sample=True)["reply"]]
    for reply in replies: assert len(reply) <= 6 and not {0, 1, 2} & set(reply)   # nothing special
    assert len({len(r) for r in replies}) > 1   # some stopped at the end token
    assert model.training                       # left as it was found


def test_seeds_and_settings(model, tmp_path):
    path = tmp_path/"a.jsonl"
    run(model, out=path)
    assert not run(model, sample=True, seed=1).equals(run(model, sample=True, seed=2))
    assert run(model, seed=1).equals(run(model, seed=2))   # greedy
    for other in (dict(sample=True), dict(mode="think"), dict(shuffle_media=True)):
        with pytest.raises(ValueError, match="was made with other settings: .*Delete it"):
            run(model, out=path, **other)
    with pytest.raises(ValueError, match="max_new_tokens is 6 there and 7 now"):
        run(model, max_new_tokens=7, out=path)
    with pytest.raises(ValueError, match="2 greedy answers"): run(model, answers=2)
    with pytest.raises(ValueError, match="clips is"): run(model, rows=rows[1:], out=path)
    with pytest.raises(ValueError, match="mode"): run(model, mode="thought")
    with pytest.raises(ValueError, match="2 names belong to more than one clip: c0, c1"):
        run(model, rows=rows + rows[:2])


def test_with_our_model(tmp_path):
    "The real model and processor: the default prompt, features per clip, and media that matter"
    torch = pytest.importorskip("torch")
    from affectgpt_r1.parts import make_toy_model
    text = "<answer>happy, sad</answer> Watch the face, listen to the voice"
    model, processor = make_toy_model([text], seed=0)
    widths = dict(video=model.config.vision_config.projection_dim,
                  audio=model.config.audio_config.hidden_size)
    def features(clip):
        rng = torch.Generator().manual_seed(int(clip["video"].split(".")[0]))
        return {f"{k}_features": 3 * torch.randn(8, n, generator=rng) for k, n in widths.items()}
    processor.features = features
    how = dict(batch_size=8, max_new_tokens=6)
    plain = predict_clips(model, processor, rows, out=tmp_path/"a.jsonl", **how)
    assert plain.equals(predict_clips(model, processor, rows, **how))
    assert not plain.equals(predict_clips(model, processor, rows, shuffle_media=True, **how))
    special = ("<|im_end|>", "<|pad|>", "<video>", "assistant", "Subtitle")
    assert not any(x in t for t in plain["reply"] for x in special)
    two = predict_clips(model, processor, rows[:2], mode="think", **how)
    assert set(two["name"]) == {"c0", "c1"}


def test_best_of_all_choices():
    "The mean over all choices of k answers, made one by one"
    words = ["happy", "sad", "angry, happy", "sad, happy, angry", "calm"]
    table = pd.DataFrame([dict(name=n, reply=f"<answer>{t}</answer>") for n in "ab" for t in words])
    gold = dict(a=["happy"], b=["sad", "angry"])
    def f_of(name, text):
        return ew_score([gold[name]], [text.split(", ")], wheels=wheels).per_wheel.f.mean()
    f = {name: [f_of(name, text) for text in words] for name in gold}
    for k, value in best_of(gold, table, wheels).items():
        choices = [max(c) for name in gold for c in itertools.combinations(f[name], k)]
        assert value == pytest.approx(np.mean(choices))


@pytest.mark.parametrize("reply,labels", [
    ("<answer>sad, Sad</answer>", ["sad"]), ("sad", []), ("<think>sad</think>", []), ("", []),
    ("<answer>sad", ["sad"]), ("<think>happy</think><answer>sad</answer>", ["sad"])])
def test_score_and_reward_read_the_same_labels(reply, labels):
    "A reply without `<answer>` has none; in mode plain the whole text is read"
    for mode in ("answer", "think"):
        assert read_labels({"a": reply}, mode)["a"] == answer_labels(reply, mode) == labels
    scores = score_predictions({"a": ["sad"]}, {"a": reply}, wheels)
    assert scores["ew_f"] == bool(labels) and scores["mean_labels"] == len(labels)
    assert read_labels({"a": "It is sad."}, "plain") == {"a": ["sad"]}


# labels that a server reads

class Reader(BaseHTTPRequestHandler):
    "Says what the server's script says, then reads the text after *Description:*"
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][0]["content"].split("Description: ")[1]
        self.server.asked.append(text)
        content = self.server.script.pop(0) if self.server.script else f"[{text}]"
        time.sleep(.05)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": content}}]}).encode())
    def log_message(self, *args): pass


@pytest.fixture
def reader():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Reader)
    server.asked, server.script = [], []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_labels_of_many_texts_at_once(reader, tmp_path):
    "Each text once, none that is empty, and from the file the next time"
    texts = {str(i): f"<answer>word{chr(97 + i % 12)}</answer>" for i in range(24)}
    replies = texts | {"empty": "<answer></answer>", "untagged": "sad"}
    want = {name: [text[8:-9]] for name, text in texts.items()} | {"empty": [], "untagged": []}
    labels = EndpointLabels(reader.url, "m", tmp_path/"new"/"labels.jsonl", workers=6)
    assert read_labels(replies, extract=labels) == want
    assert len(reader.asked) == len(set(reader.asked)) == 12
    again = EndpointLabels(reader.url, "m", tmp_path/"new"/"labels.jsonl")
    assert read_labels(replies, extract=again) == want and len(reader.asked) == 12
    scores = score_predictions({"0": ["worda"]}, replies, wheels, extract=again)
    assert scores["extractor"].startswith("m, question ")


@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_a_reply_without_text_is_an_error(reader, tmp_path, nothing):
    reader.script = [nothing] * 3
    labels = EndpointLabels(reader.url, "m", tmp_path/"labels.jsonl", pause=.01, timeout=.1)
    with pytest.raises(ValueError, match="the reply is empty.*0 answers are kept"): labels("sad")
    assert not (tmp_path/"labels.jsonl").exists()
    time.sleep(.15)
    assert labels("sad") == ["sad"] and len(reader.asked) == 4


def test_an_endpoint_that_is_away_is_an_error(tmp_path):
    path = tmp_path/"labels.jsonl"
    labels = EndpointLabels("http://localhost:9/v1", "reader", path, timeout=1, pause=.01)
    with pytest.raises(ValueError, match="localhost:9.*no usable reply.*0 answers are kept"):
        read_labels({"a": "<answer>happy</answer>"}, extract=labels)
    assert not path.exists()


# baselines and records

def test_constant_baseline_finds_the_best_answer():
    "Greedy search equals the search of all lists, where these are few enough to try"
    words = ["happy", "sad", "angry", "worried", "surprised"]
    lists = [list(c) for k in range(1, 6) for c in itertools.combinations(words, k)]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        train = [list(rng.choice(words, rng.integers(1, 4), replace=False,
                                 p=rng.dirichlet(np.ones(5)))) for _ in range(40)]
        best = max(ew_score(train, [c] * 40, wheels=wheels).f for c in lists)
        gold = {str(i): labels for i, labels in enumerate(train)}
        found = constant_baseline(train, gold, wheels)
        assert found["ew_f"] == pytest.approx(best, abs=.02) and found["ew_f"] <= best + 1e-9


def test_baselines_never_see_the_test_labels():
    train, gold = [["sad"], ["sad", "angry"]] * 10, {"a": ["happy"], "b": ["happy"]}
    constant = constant_baseline(train, gold, wheels)
    frequency = frequency_baseline(train, gold, wheels)
    assert set(constant["labels"]) <= {"sad", "angry"}
    assert constant["ew_f"] == frequency["ew_f"] == 0


def test_neutral_and_empty_replies_are_scored():
    gold = {"a": ["neutral"], "b": ["happy"], "c": ["sad"]}
    replies = {"a": make_target(["neutral"]), "b": "", "c": make_target(["gloomy"])}
    s = score_predictions(gold, replies, wheels)
    assert s["ew_f"] == pytest.approx(.5) and s["format_rate"] == pytest.approx(2/3)
    assert np.isfinite(s["ci95"]).all()


def test_metrics_json(tmp_path):
    scores = score_predictions({"a": ["sad"]}, {"a": make_target(["sad"])}, wheels)
    stage = scores | dict(ew_f_sampled=np.float32(.5))
    record = dict(preset="toy", seed=0, stages=dict(cold_start=stage, grpo=stage),
                  baselines=dict(constant=dict(ew_f=.1)), seconds=dict(total=1.))
    found = json.loads(write_metrics(tmp_path/"run", **record).read_text())
    assert list(found) == ["preset", "seed", "stages", "baselines", "seconds"]
    assert not missing_keys(found)
    assert [p.name for p in (tmp_path/"run").iterdir()] == ["metrics.json"]
    for key in stage:
        less = {k: v for k, v in stage.items() if k != key}
        broken = record | dict(stages=dict(cold_start=stage, grpo=less))
        with pytest.raises(ValueError, match=f"stages.grpo.{key}$"):
            write_metrics(tmp_path/"other", **broken)
    assert not (tmp_path/"other").exists()
    assert summary_table(found["stages"], found["baselines"]).shape[0] == 3


def test_scoring_needs_no_torch():
    code = """
import sys, affectgpt_r1.evaluate as e
e.score_predictions({'a': ['sad']}, {'a': '<answer>sad</answer>'})
assert not {'torch', 'openai'} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True)
