"""The score in evaluation harnesses: the same number as here, through each harness's own code where
it is installed"""

import asyncio
import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from affectgpt_r1 import harnesses
from affectgpt_r1.harnesses import (
    HARNESS_RUNS, HARNESS_SETS, METRIC_NAMES, evaluate_scores, harness_folder, inspect_scorer,
    lmms_results, lmms_score, lmms_visual, score_answers, torch_metric, vlmeval_dataset,
    write_lmms_tasks, write_vlmeval_tables)
from affectgpt_r1.metrics import EWScore, ew_score, hit_rate, sentiment_score
from affectgpt_r1.toy import load_states, write_annotations
from affectgpt_r1.toy_benchmark import benchmark_clip_files
from affectgpt_r1.unibench import UNIBENCH

pytestmark = pytest.mark.filterwarnings("ignore:.*the published:UserWarning",
                                        "ignore:.*masked:UserWarning")
ROOT = Path(__file__).resolve().parent.parent
SETS = list(HARNESS_SETS)
GOLD = [["happy", "relieved"], ["sad"], ["neutral"], ["angry", "hurt"], ["scared"]]
PRED = [["joyful"], ["tired", "down", "happy"], ["happy"], [], ["afraid", "zork"]]
WANT = ew_score(GOLD, PRED)
REPLIES = ["<answer>happy, joyful</answer>", "<answer>sad</answer>", "angry", "",
           "<answer>neutral, calm</answer>", "<answer>furious and scared</answer>"]


def close(x): return pytest.approx(x, rel=0, abs=1e-12)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    "Labels and subtitles of a small generated corpus; its clips have no files"
    root = tmp_path_factory.mktemp("corpus")
    write_annotations(root, dict(caption=1, human=1, test=6, unibench=6))
    return root


@pytest.fixture(scope="module")
def tasks(corpus, tmp_path_factory):
    "The folder for lmms-eval"
    out = tmp_path_factory.mktemp("tasks")
    names = write_lmms_tasks(corpus, out, SETS, missing="mask")
    assert names == [f"affectgpt_{key.lower()}" for key in SETS]
    return out


def rows_of(tasks, key):
    return [json.loads(line) for line in (tasks/f"{key}.jsonl").read_text().splitlines()]


def replies_to(rows):
    "A model that answers at random, always the same"
    return [REPLIES[sum(map(ord, row["name"])) % len(REPLIES)] for row in rows]


def expected(key, rows):
    "The score of a set, from its gold and the words in the replies"
    words = [re.findall(r"[a-z]+", (re.findall("<answer>(.*)</answer>", r) or [""])[0])
             for r in replies_to(rows)]
    words = [[w for w in found if w != "and"] for found in words]
    gold = [json.loads(str(row["gold"])) for row in rows]
    if HARNESS_SETS[key] == "EW F": return ew_score(gold, words).f
    if HARNESS_SETS[key] == "hit rate": return hit_rate(gold, words).hit_rate
    votes = {"happy": 1, "joyful": 1, "calm": 1, "sad": -1, "furious": -1, "scared": -1}
    sums = [sum(votes.get(w, 0) for w in found) for found in words]
    names = {1: "positive", 0: "neutral", -1: "negative"}
    return sentiment_score(gold, [names[int(np.sign(x))] for x in sums]).waf


# lmms-eval

@pytest.mark.parametrize("key", SETS)
def test_rows_and_score_of_each_set(tasks, key):
    "As lmms-eval calls the three functions that a task names"
    rows = rows_of(tasks, key)
    assert len(rows) == (12 if key == "OVMERDPlus" else 6)
    assert all(set(row) == {"name", "video", "audio", "question", "gold", "measure", "mode"}
               and "<answer>" in row["question"] for row in rows)
    kept = [lmms_results(row, [reply]) for row, reply in zip(rows, replies_to(rows))]
    name = METRIC_NAMES[HARNESS_SETS[key]]
    assert lmms_score([x[name] for x in kept]) == close(expected(key, rows))
    assert lmms_visual(dict(video="a.mp4", audio="a.wav")) == ["a.mp4"]
    assert lmms_visual(dict(video="", audio="a.wav")) == ["a.wav"]


def read_yaml(path):
    "A task file, with the names of its functions as text"
    yaml = pytest.importorskip("yaml")
    class Loader(yaml.SafeLoader): pass
    Loader.add_constructor("!function", lambda loader, node: node.value)
    return yaml.load(path.read_text(), Loader)


def test_task_files_agree_with_the_sets():
    folder = harness_folder("lmms_eval")
    shared = read_yaml(folder/"_emotions_yaml")
    assert shared["doc_to_text"] == "question" and shared["doc_to_target"] == "gold"
    functions = [v for v in shared.values() if str(v).startswith("affectgpt_r1.")]
    for key, measure in HARNESS_SETS.items():
        task = read_yaml(folder/f"{key.lower()}.yaml")
        (metric,) = task["metric_list"]
        assert task["task"] == f"affectgpt_{key.lower()}" and task["include"] == "_emotions_yaml"
        assert task["dataset_kwargs"] == dict(data_files=dict(test=f"{key}.jsonl"))
        assert metric["metric"] == METRIC_NAMES[measure] and metric["higher_is_better"]
        functions.append(metric["aggregation"])
    assert all(callable(getattr(harnesses, name.rpartition(".")[2])) for name in functions)
    group = read_yaml(folder/"unibench.yaml")
    assert group["task"] == [f"affectgpt_{key.lower()}" for key in UNIBENCH]
    assert len(list(folder.glob("*.yaml"))) == len(HARNESS_SETS) + 1


def test_in_lmms_eval(tasks):
    "All ten tasks by `--include_path`, with a model that answers each clip in its own way"
    pytest.importorskip("lmms_eval", reason="lmms-eval is missing")
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    class Parrot(lmms):
        is_simple, task_dict = True, {}
        def loglikelihood(self, requests): raise AssertionError("none of our tasks asks for it")
        def generate_until_multi_round(self, requests): self.loglikelihood(requests)
        def generate_until(self, requests):
            docs = [self.task_dict[task][split][i] for *_, i, task, split in
                    (r.args for r in requests)]
            assert all(r.args[0] == doc["question"] for r, doc in zip(requests, docs))
            return replies_to(docs)

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    assert {f"affectgpt_{key.lower()}" for key in SETS} < {*manager.all_tasks}
    found = simple_evaluate(
        model=Parrot(), tasks=["affectgpt_unibench", "affectgpt_toy"], task_manager=manager,
        bootstrap_iters=0, cli_args=SimpleNamespace(
            process_with_media=False, output_path="", predict_only=False))["results"]
    for key in SETS:
        score = found[f"affectgpt_{key.lower()}"][f"{METRIC_NAMES[HARNESS_SETS[key]]},none"]
        assert score == close(expected(key, rows_of(tasks, key))), key


def test_what_cannot_be_written(corpus, tmp_path):
    with pytest.raises(ValueError, match="no set 'Other'; there are MER2023"):
        write_lmms_tasks(corpus, tmp_path, ["Other"])
    with pytest.raises(ValueError, match="mode is 'plain'"):
        write_lmms_tasks(corpus, tmp_path, ["Toy"], "mask", mode="plain")
    with pytest.raises(FileNotFoundError): write_lmms_tasks(tmp_path/"none", tmp_path, ["Toy"])


# VLMEvalKit

class VideoBaseDataset:
    "What VLMEvalKit's class of that name does with its methods: vlmeval/dataset/video_base.py"
    def __init__(self, dataset, nframe=0, fps=-1):
        found = self.prepare_dataset(dataset)
        self.data_root, self.data = found["root"], LOAD(found["data_file"])
        assert "question" in self.data and "video" in self.data and "index" in self.data

    def save_video_frames(self, video): return [f"{self.data_root}/{video}.mp4#{i}" for i in (0, 1)]


def LOAD(path): return pd.read_csv(path, sep="\t")


@pytest.fixture
def vlmeval(monkeypatch, tmp_path):
    "Its modules, as far as our class needs them; those of an installed VLMEvalKit go first"
    try:
        import vlmeval.dataset.video_base  # noqa: F401
        monkeypatch.setenv("LMUData", str(tmp_path))
    except ImportError:
        modules = {
            "vlmeval": {}, "vlmeval.dataset": {}, "vlmeval.smp": {},
            "vlmeval.dataset.video_base": dict(VideoBaseDataset=VideoBaseDataset),
            "vlmeval.smp.file": dict(load=LOAD, LMUDataRoot=lambda: str(tmp_path))}
        for name, content in modules.items():
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)
    return tmp_path


def with_files(corpus, root, key):
    "A copy of the corpus with a file for each clip of a set"
    shutil.copytree(corpus, root)
    for name in load_states(root, "test") if key in ("Toy", "OVMERDPlus") else ():
        files = [root/f"video/{name}.mp4", root/f"audio/{name}.wav"]
        for file in (*files, *benchmark_clip_files(root, "OVMERDPlus", name)): write(file)
    for name in load_states(root, key) if key != "Toy" else ():
        for file in benchmark_clip_files(root, key, name): write(file)
    return root


def write(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"no film")


@pytest.mark.parametrize("key", ["MER2023", "SIMS", "OVMERDPlus", "Toy"])
def test_in_vlmeval(vlmeval, corpus, key):
    with pytest.raises(ValueError, match=f"{key}: no video for clip .*missing='drop'"):
        write_vlmeval_tables(corpus, vlmeval, [key], missing="mask")
    root = with_files(corpus, vlmeval/"corpus", key)
    (file,) = write_vlmeval_tables(root, vlmeval, [key])
    table, cls = LOAD(file), vlmeval_dataset()
    folder = Path(table["path"][0]).parent
    assert f"AffectGPT_{key}" in cls.supported_datasets() and cls.MODALITY == "VIDEO"
    data = cls(dataset=f"AffectGPT_{key}")
    assert data.data_root == str(folder) and (folder/f"{data.data['video'][0]}.mp4").is_file()
    whole, asked = data.build_prompt(0, video_llm=True)
    assert whole == dict(type="video", value=table["path"][0])
    assert asked == dict(type="text", value=table["question"][0])
    if cls.__mro__[1] is VideoBaseDataset:
        *frames, asked = data.build_prompt(data.data.iloc[1], video_llm=False)
        assert [f["type"] for f in frames] == ["image"] * 2 and asked["type"] == "text"
    rows = table.to_dict("records")
    answered = vlmeval/"answers.tsv"
    table.assign(prediction=replies_to(rows)).to_csv(answered, sep="\t", index=False)
    name = METRIC_NAMES[HARNESS_SETS[key]]
    found = data.evaluate(str(answered), model="exact_matching", nproc=4)
    assert found == {name: close(expected(key, rows))}


# inspect

def test_as_inspect_calls_it():
    "A score for each reply, and one for all that is not their mean"
    state = SimpleNamespace(output=SimpleNamespace(completion="<answer>joyful</answer>"))
    one = harnesses._clip_score(SimpleNamespace, state, ["happy", "relieved"], "answer", None)
    assert one.value == close(ew_score([GOLD[0]], [["joyful"]]).f) and one.answer == "joyful"
    scores = [SimpleNamespace(score=SimpleNamespace(metadata=dict(gold=g, labels=p)))
              for g, p in zip(GOLD, PRED)]
    metric = harnesses._corpus_f(None, object)
    assert metric(scores) == close(WANT.f)
    assert metric.__annotations__["scores"] == list[object]   # else it gets bare scores


@pytest.fixture(scope="module")
def inspect_python():
    "An interpreter that has inspect: `make test` makes an environment for it"
    own = ROOT/".venv-inspect/bin/python"
    has = own.exists() and not subprocess.run([own, "-c", "import inspect_ai, pandas"],
                                              capture_output=True).returncode
    return own if has else pytest.skip("inspect-ai is missing: .venv-inspect lacks it")


def test_in_inspect(tmp_path, inspect_python):
    "An evaluation with inspect's own mock model, two epochs"
    done = subprocess.run(
        [inspect_python, ROOT/"tests/in_inspect.py", json.dumps([GOLD, PRED]), tmp_path],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert not done.returncode, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics["ew_f"] == close(WANT.f) and set(metrics) == {"ew_f", "mean"}


# evaluate

def test_what_the_module_for_evaluate_gives():
    found = evaluate_scores(PRED, GOLD)
    assert found.pop("ew_f") == close(WANT.f)
    assert found == {name: getattr(WANT, name) for name in found} and len(found) == 6
    card = (harness_folder("ew_score")/"README.md").read_text()
    assert all(f"`{name}`" in card for name in ("ew_f", *found))


def test_in_evaluate(tmp_path, monkeypatch):
    "Loaded from its folder: lists of words, texts, and batches"
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    evaluate = pytest.importorskip("evaluate", reason="evaluate is missing")
    metric = evaluate.load(str(harness_folder("ew_score")), cache_dir=str(tmp_path))
    assert metric.compute(predictions=PRED, references=GOLD)["ew_f"] == close(WANT.f)
    texts = [[", ".join(x) for x in side] for side in (PRED, GOLD)]
    assert metric.compute(predictions=texts[0], references=texts[1])["ew_f"] == close(WANT.f)
    for g, p in zip(GOLD, PRED): metric.add(prediction=p, reference=g)
    two = ew_score(GOLD, PRED, level=2, undefined="nan").f
    assert metric.compute(level=2, undefined="nan")["ew_f"] == pytest.approx(two, nan_ok=True)


# torchmetrics

class Metric:
    "What torchmetrics asks of a metric and does with it"
    def __init__(self, **kwargs): self.kwargs = kwargs
    def add_state(self, name, default, dist_reduce_fx=None):
        assert dist_reduce_fx == "sum"
        setattr(self, name, default.clone())
    def __getstate__(self): return vars(self)


@pytest.fixture(params=["ours", "theirs"])
def metric(request, monkeypatch):
    pytest.importorskip("torch")
    if request.param == "theirs":
        pytest.importorskip("torchmetrics", reason="torchmetrics is missing")
    else:
        monkeypatch.setattr(harnesses, "import_engine", lambda *_: SimpleNamespace(Metric=Metric))
    return torch_metric()


def test_batches_add_up(metric):
    for i in range(len(GOLD)): metric.update(PRED[i:i+1], GOLD[i:i+1])
    assert metric.compute().item() == close(WANT.f)
    assert str(metric.result()) == str(WANT)
    other = torch_metric()
    other.update(PRED[:2], GOLD[:2])
    assert other.compute().item() == close(ew_score(GOLD[:2], PRED[:2]).f)
    assert metric.compute().item() == close(WANT.f)


def test_it_travels(metric):
    "Copied and pickled, as a trainer does with its metrics"
    metric.update(PRED, GOLD)
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert twin.compute().item() == close(WANT.f)
        twin.update(PRED[:1], GOLD[:1])
        assert twin.result().n == 6
    assert metric.result().n == 5


def worker(rank, port, queue):
    "One of two processes"
    import os

    import torch
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    metric = torch_metric()
    metric.update(PRED[rank::2], GOLD[rank::2])
    queue.put(metric.compute().item())
    torch.distributed.destroy_process_group()


def test_in_two_processes():
    pytest.importorskip("torchmetrics", reason="torchmetrics is missing")
    import socket

    from torch import multiprocessing
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    both = [context.Process(target=worker, args=(rank, port, queue)) for rank in (0, 1)]
    for p in both: p.start()
    found = [queue.get(timeout=100) for _ in both]
    for p in both: p.join()
    assert found == [close(WANT.f)] * 2


def test_with_torchmetrics_own_collection():
    torchmetrics = pytest.importorskip("torchmetrics", reason="torchmetrics is missing")
    both = torchmetrics.MetricCollection(dict(one=torch_metric(), two=torch_metric(level=2)))
    found = both(PRED, GOLD)
    assert found["one"].item() == close(WANT.f)
    assert found["two"].item() == close(ew_score(GOLD, PRED, level=2).f)
    both.reset()
    both.update(PRED[:2], GOLD[:2])
    assert both.compute()["one"].item() == close(ew_score(GOLD[:2], PRED[:2]).f)


# all of them

def test_sums_are_public():
    "What the metric of torchmetrics adds up over processes"
    a, b = EWScore().update(GOLD[:2], PRED[:2]), EWScore().update(GOLD[2:], PRED[2:])
    a.sums = a.sums + b.sums
    assert a.compute().f == close(WANT.f)


def test_missing_harnesses_are_named(monkeypatch):
    for module in ("inspect_ai.scorer", "torchmetrics", "vlmeval.dataset.video_base"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="pip install inspect-ai"): inspect_scorer()
    with pytest.raises(ImportError, match="pip install torchmetrics"): torch_metric()
    with pytest.raises(ImportError, match="VLMEvalKit"): vlmeval_dataset()
    with pytest.raises(ValueError, match="there are ew_score, lmms_eval"): harness_folder("x")
    assert len(HARNESS_RUNS) == 5 and score_answers([dict(
        measure="hit rate", gold=["happy"], labels=["glad"])]) == 1
    assert asyncio.iscoroutinefunction  # the scorer of inspect is awaited


def test_only_the_tasks_asked_for_are_written(corpus, tmp_path):
    "and a yaml file of somebody else's stays"
    (tmp_path / "mine.yaml").write_text("task: mine\n")
    write_lmms_tasks(corpus, tmp_path, ["OVMERDPlus"], missing="mask")
    assert {f.name for f in tmp_path.glob("*.yaml")} == {"mine.yaml", "ovmerdplus.yaml",
                                                         "unibench.yaml"}
    assert (tmp_path / "unibench.yaml").read_text().split()[-2:] == ["-", "affectgpt_ovmerdplus"]
    write_lmms_tasks(corpus, tmp_path / "toy", ["Toy"], "mask")
    assert [f.name for f in (tmp_path / "toy").glob("*.yaml")] == ["toy.yaml"]
