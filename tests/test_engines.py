"""The reward inside other trainers: called as each of them calls it, through its own code where it
is installed"""

import ast
import asyncio
import importlib
import inspect
import json
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from affectgpt_r1 import engines
from affectgpt_r1.engines import (
    ENGINE_CONTRACTS, async_reward, choice_gold, choice_reward, nemo_reward, openrlhf_reward,
    reply_scorer, swift_rewards, tinker_env, verifiers_reward, verl_score)
from affectgpt_r1.metrics import ew_rewards, ew_score
from affectgpt_r1.rewards import REWARD_RECIPES, make_rewards
from affectgpt_r1.wheels import load_wheels

wheels = load_wheels()
THOUGHT = "<think>She is sad.</think>"
GOLD = [["sad"], ["happy", "relieved"], ["neutral"], ["angry", "hurt", "let down"]]
REPLIES = [f"{THOUGHT}<answer>sad</answer>", f"{THOUGHT}<answer>glad, calm, sad</answer>",
           f"{THOUGHT}<answer>neutral</answer>", "angry <answer>furious"]
RECIPES = ["acc", "acc+format+p1", "dual", "precision+recall", "graded"]


def shorter(row, a, b): return float(len(a) < len(b))


def weighted(recipe):
    "The reward of each reply, as trl adds it up; what does not apply counts 0"
    functions, weights = make_rewards(recipe, wheels, mode="think")
    rows = [f(completions=REPLIES, labels=GOLD) for f in functions]
    return np.nan_to_num(np.array(rows, float).T) @ weights


def run(reward, *args, **kwargs):
    "What a reward gives, awaited where it must be"
    found = reward(*args, **kwargs)
    return asyncio.run(found) if inspect.isawaitable(found) else found


def verifiers_trace(reply):
    "A conversation of verifiers, as far as a reward looks at it"
    metrics = {}
    return SimpleNamespace(last_reply=reply, metrics=metrics, record_metrics=metrics.update)


# the same number in every engine

@pytest.mark.parametrize("recipe", RECIPES)
def test_a_reply_gets_the_same_number_everywhere(recipe):
    how = dict(recipe=recipe, wheels=wheels, mode="think")
    verl, nemo, verifiers = verl_score(**how), nemo_reward(**how), verifiers_reward(**how)
    plugins = [cls() for cls in swift_rewards(**how).values()]
    weights = [weight for _, weight in REWARD_RECIPES[recipe].weights]
    found = {}
    columns = np.array([p(REPLIES, labels=GOLD) for p in plugins], float)
    found["ms-swift"] = np.nan_to_num(columns.T) @ weights
    found["verl"] = [verl("set", r, g)["score"] for r, g in zip(REPLIES, GOLD)]
    found["nemo"] = [nemo(", ".join(g), r)[0] for r, g in zip(REPLIES, GOLD)]
    found["verifiers"] = [run(verifiers, SimpleNamespace(labels=g), verifiers_trace(r))
                          for r, g in zip(REPLIES, GOLD)]
    for engine, values in found.items():
        assert np.allclose(values, weighted(recipe), rtol=0, atol=1e-12), engine
    if recipe == "acc+format+p1": assert weighted(recipe)[0] == 1.2


@pytest.mark.parametrize("recipe", RECIPES)
def test_openrlhf_gets_the_same_number(recipe):
    pytest.importorskip("torch", reason="OpenRLHF takes tensors")
    prompts = [f"<|im_start|>user\nWords inside <answer></answer>, clip {i}.<|im_end|>\n"
               "<|im_start|>assistant\n" for i in range(len(REPLIES))]
    queries = [p + r + "<|im_end|>" for p, r in zip(prompts, REPLIES)]
    labels = [", ".join(g) for g in GOLD]
    found = openrlhf_reward(recipe, wheels, mode="think")(queries, prompts, labels)
    assert np.allclose(found["rewards"], weighted(recipe), rtol=0, atol=1e-6)
    assert list(found["extra_logs"]) == [c for c, _ in REWARD_RECIPES[recipe].weights]
    assert found["scores"].tolist() == next(iter(found["extra_logs"].values())).tolist()


def test_one_scorer_names_each_component():
    score = reply_scorer("acc+format+p1", wheels)
    assert score("<answer>happy, glad</answer>", "[happy]") == dict(
        score=.5 + .2, accuracy=.5, format=1.)
    assert score("<answer>sad</answer>", np.array(["neutral"], object)) == dict(
        score=.2, accuracy=0., format=1.)   # no wheel knows neutral
    for adapter in (reply_scorer, verl_score, nemo_reward, openrlhf_reward, verifiers_reward):
        with pytest.raises(ValueError, match="needs a judge"):
            adapter("all-five", wheels, mode="think")


# the contracts

def target(adapter):
    "What an engine calls, of the adapter of that name"
    if adapter == "make_rewards": return make_rewards()[0][0]
    if adapter == "swift_rewards": return swift_rewards()["affectgpt_accuracy"]()
    if adapter == "tinker_env":
        env = type("Env", (), engines._tinker_methods(None, None, None))
        return env(None, [], [], row=1).step
    return getattr(engines, adapter)()


@pytest.mark.parametrize("contract", ENGINE_CONTRACTS, ids=lambda c: c.engine)
def test_signature_takes_the_call_and_what_nobody_knows(contract):
    named = dict.fromkeys((*contract.named, "an_argument_of_next_year"))
    if contract.engine in ("trl", "ms-swift"): named |= dict(labels=[], name=[])   # the columns
    function = target(contract.adapter)
    inspect.signature(function).bind(*contract.positional, **named)
    is_async = inspect.iscoroutinefunction(function)
    assert is_async == (contract.takes_async == "only")


def test_contracts_say_where_they_were_read():
    assert len({c.engine for c in ENGINE_CONTRACTS}) == len(ENGINE_CONTRACTS) == 8
    for c in ENGINE_CONTRACTS:
        assert c.url.startswith("https://") and c.source.endswith(".py") and c.version[0].isalnum()


def test_asynchronous_rewards_overlap():
    "Each waits for the other; one after the other, they would wait for ever"
    barrier = threading.Barrier(2, timeout=20)

    def reward(completions, **columns):
        barrier.wait()
        return [1.] * len(completions)

    reward.mode = "think"
    slow = async_reward(reward)
    assert inspect.iscoroutinefunction(slow) and (slow.__name__, slow.mode) == ("reward", "think")

    async def both(): return await asyncio.gather(slow(completions=["a"]), slow(["a"], name=[1]))

    assert asyncio.run(both()) == [[1.], [1.]]


# ms-swift and verl, as their own code calls a reward

def test_as_swift_calls_it():
    """ms-swift 4.6.0: registered by name, made with `args=`, called with completions and columns

    The class's name is the one in the log.
    """
    orms = {"accuracy": object, "format": object}   # its own; ours must not take their place
    orms.update(swift_rewards("all-five", wheels, judge=shorter))
    assert list(orms)[:2] == ["accuracy", "format"] and len(orms) == 7
    longer = THOUGHT.replace("</think>", " at length</think>")   # for the judge of thoughts
    completions = [f"{THOUGHT}<answer>sad</answer>", f"{longer}<answer>sad, low</answer>"]
    columns = dict(trainer_state=SimpleNamespace(global_step=0), labels=[["sad"], ["sad"]],
                   messages=[[{"role": "user", "content": "?"}]] * 2, name=["clip"] * 2)
    rewards = {}
    for name in list(orms)[2:]:
        reward = orms[name](args=SimpleNamespace())
        assert callable(reward) and not inspect.isfunction(reward)
        rewards[reward.__class__.__name__] = reward(completions, **columns)
    assert rewards == {"accuracy": [1, .5], "format": [1, 1], "dual": [1, 1], "alignment": [1, 1],
                       "perception": [1, 0]}
    accuracy = orms["affectgpt_accuracy"](args=None)
    assert accuracy(completions[:1], labels=[["neutral"]]) == [None]
    slow = swift_rewards("acc", wheels, is_async=True)["affectgpt_accuracy"](args=None)
    assert inspect.iscoroutinefunction(slow.__call__) and type(slow).__name__ == "accuracy"
    assert asyncio.run(slow(completions, **columns)) == [1, .5]


@pytest.mark.parametrize("is_async", [False, True])
def test_in_swift(is_async):
    "Through ms-swift's own function, which finds out whether it must await a reward"
    algorithm = pytest.importorskip("swift.rl_core.grpo_algorithm", reason="ms-swift is missing")
    data = pytest.importorskip("swift.rl_core.data")
    torch = pytest.importorskip("torch")
    rewards = [cls(args=None) for cls in
               swift_rewards("acc", wheels, mode="think", is_async=is_async).values()]
    samples = [data.GRPOSample(messages=[dict(role="user", content="?"),
                                         dict(role="assistant", content=r)],
                               extra=dict(labels=g)) for r, g in zip(REPLIES, GOLD)]
    found = algorithm.compute_rewards_per_func(
        samples, rewards, [None], torch.device("cpu"), trainer_state=SimpleNamespace())
    assert np.allclose(np.nan_to_num(found[:, 0]), weighted("acc"), atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda f: f, async_reward], ids=["sync", "async"])
def test_in_verl(wrap):
    "Through verl's own reward manager, from token ids to the score"
    naive = pytest.importorskip("verl.experimental.reward_loop.reward_manager.naive",
                                reason="verl is missing")
    torch, verl = pytest.importorskip("torch"), pytest.importorskip("verl")
    score, (reply, gold) = wrap(verl_score("acc+format+p1", wheels, mode="think")), (
        REPLIES[1], GOLD[1])
    tokenizer = SimpleNamespace(decode=lambda ids, **how: bytes(ids.tolist()).decode())
    ids = torch.tensor([list(reply.encode())])

    async def manage():
        manager = naive.NaiveRewardManager(SimpleNamespace(), tokenizer, score)
        row = dict(data_source=["set"], reward_model=[dict(ground_truth=gold)], extra_info=[{}])
        data = verl.DataProto.from_dict(
            tensors=dict(responses=ids, attention_mask=torch.ones_like(ids)),
            non_tensors={k: np.array(v, object) for k, v in row.items()})
        return await manager.run_single(data)

    found = asyncio.run(manage())
    assert found["reward_score"] == weighted("acc+format+p1")[1]
    assert list(found["reward_extra_info"]) == ["score", "accuracy", "format"]


# trl's own code

@pytest.mark.parametrize("wrap", [lambda f: f, async_reward], ids=["sync", "async"])
def test_in_trl(wrap):
    torch = pytest.importorskip("torch")
    trl = pytest.importorskip("trl", minversion="1.8")
    functions, _ = make_rewards("acc+format+p1", wheels, mode="think")
    loop, logged = asyncio.new_event_loop(), []
    threading.Thread(target=loop.run_forever, daemon=True).start()
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, is_main_process=True),
        state=SimpleNamespace(global_step=1),
        reward_funcs=[wrap(f) for f in functions], reward_processing_classes=[None] * 2,
        reward_func_names=[f.__name__ for f in functions], environments=None, async_loop=loop,
        _log_completion_extra=None, _log_metric=lambda name, value: logged.append(name),
        args=SimpleNamespace(report_to=[]))
    rows = [dict(prompt="?", labels=g, name="clip") for g in GOLD]
    found = trl.GRPOTrainer._calculate_rewards(
        trainer, rows, ["?"] * len(rows), REPLIES, [[1]] * len(rows))
    loop.call_soon_threadsafe(loop.stop)
    total = np.nan_to_num(np.asarray(found)) @ [1, .2]
    assert np.allclose(total, weighted("acc+format+p1"), atol=1e-6)
    assert torch.isnan(found[2, 0]) and logged == ["answer/f", "answer/words", "answer/written"]


# OpenRLHF

def test_openrlhf_reads_the_reply_out_of_the_query():
    pytest.importorskip("torch", reason="OpenRLHF takes tensors")
    reward = openrlhf_reward("acc+format", wheels)
    prompt = f"A clip.\n<image>\n{'x' * 80} Words inside <answer></answer>.<|im_end|>assistant\n"

    def of(query): return reward([query], [prompt], ["[sad]"], unknown=1)["rewards"].item()

    reply, whole = "<answer>sad</answer>", pytest.approx(1.2)
    for end in ("", "<|im_end|>", "<|im_end|>\n", "</s>", "<eos>", "<end_of_turn>\n<eos>",
                "<|im_end|><|endoftext|>", "<｜end▁of▁sentence｜>"):
        assert of(prompt + reply + end) == whole, end
    assert of(prompt.replace("<image>", "<|image_pad|>" * 9) + reply) == whole
    assert of(prompt[30:] + reply) == whole                       # a prompt that was cut
    assert of(prompt + reply + " and more<|im_end|>") == pytest.approx(1)
    with pytest.raises(ValueError, match="end of its prompt"): of("other" + reply)


@pytest.mark.parametrize("reply", REPLIES)
def test_in_openrlhf(tmp_path, reply):
    "Through its executor, which loads the file, decodes prompt and reply and calls in a thread"
    agent = pytest.importorskip("openrlhf.utils.agent", reason="OpenRLHF is missing")
    torch = pytest.importorskip("torch")
    (tmp_path/"reward.py").write_text(
        "from affectgpt_r1.engines import openrlhf_reward\n"
        "reward_func = openrlhf_reward('acc+format+p1', mode='think')\n")

    class Tokenizer:   # of bytes
        def __call__(self, text, **how): return dict(input_ids=torch.tensor([[*text.encode()]]))
        def decode(self, ids, **how): return bytes(ids).decode()

    class Engine:
        async def generate(self, *prompt, **how):
            ids = list((reply + "<|im_end|>").encode())
            done = SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)
            return SimpleNamespace(outputs=[done])

    how = SimpleNamespace(max_tokens=400, logprobs=None)
    prompt, gold = "Words inside <answer></answer>.\nassistant: ", GOLD[REPLIES.index(reply)]
    found = asyncio.run(agent.SingleTurnAgentExecutor(str(tmp_path/"reward.py")).execute(
        prompt, ", ".join(gold), how, 2000, Tokenizer(), Engine()))
    want = weighted("acc+format+p1")[REPLIES.index(reply)]
    assert torch.tensor([found["reward"]]).tolist() == [pytest.approx(want, abs=1e-6)]
    assert torch.tensor([found["scores"]]).shape == (1,)
    assert list(found["extra_logs"]) == ["accuracy", "format"]


# NeMo RL

OPTIONS = ["A. joyful", "B.sad", "C: at ease", "(D) angry, furious", "E) surprised"]


@pytest.mark.parametrize("answer, letters, words", [
    ("A,E", 1, "joyful, surprised"), ("E, A", 1, "joyful, surprised"),
    ("AE", 1, "joyful, surprised"),
    ("(a) and e", 1, "joyful, surprised"), ("A. joyful, E. surprised", 1, "joyful, surprised"),
    ("A,A,E", 1, "joyful, surprised"), ("happy, astonished", 0, "happy, astonished"),
    ("A", 2/3, "joyful"), ("A,B,E", .8, "joyful, sad, surprised"), ("B", 0, "sad"), ("", 0, ""),
    ("joyful, C", .5, "joyful, at ease"), ("A, zork", .5, "joyful, zork")])
def test_letters_and_the_words_behind_them(answer, letters, words):
    "F of the letters, and of the sectors; without a penalty, so that both are an F"
    gold = choice_gold(dict(answer="A,E", options=OPTIONS))
    reply = f"<think>She beams.</think><answer>{answer}</answer>"
    found = choice_reward(gold, reply, unknown=1)
    assert found == (pytest.approx(letters, abs=1e-12), letters == 1)
    want = ew_score([["joyful", "surprised"]], [words], wheels)
    f = ew_rewards([["joyful", "surprised"]], [words], wheels)[0]
    ew, is_right = nemo_reward("acc", wheels, penalty=None)(gold, reply, unknown=1)
    assert ew == pytest.approx(f, abs=1e-12) and is_right == (want.f == 1)


def test_weighted_with_the_rewards_of_nemo():
    "Its weights are divided by their sum, and a reward that judges nothing says None"
    gold = choice_gold(dict(answer="A,E", options=OPTIONS))
    rewards = [(nemo_reward(wheels=wheels), .8), (lambda gold, reply: (1., None), .2)]
    values = [(f(gold, f"{THOUGHT}<answer>E, A</answer>"), w) for f, w in rewards]
    assert sum(w * value for (value, _), w in values) == pytest.approx(1)
    assert all(right for (_, right), _ in values if right is not None)


def test_in_nemo_rl():
    "Added up by NeMo RL's own function with its own format reward"
    own = pytest.importorskip("nemo_rl.environments.rewards", reason="NeMo RL is missing")
    gold = choice_gold(dict(answer="A,E", options=OPTIONS))
    both = own.combine_reward_functions([(nemo_reward(wheels=wheels), .8), (own.format_reward, .2)])
    found = {x: both(gold, f"{THOUGHT}<answer>{x}</answer>") for x in ("A, E", "glad, amazed", "B")}
    assert found == {"A, E": (pytest.approx(1), True), "glad, amazed": (pytest.approx(1), True),
                     "B": (pytest.approx(.2), False)}


def test_words_behind_letters_are_scored_as_words():
    gold = choice_gold(dict(answer="A,D", options=str(OPTIONS)))
    reply = f"{THOUGHT}<answer>D, C</answer>"
    want = reply_scorer("acc+format", wheels, mode="think")(
        f"{THOUGHT}<answer>angry, furious, at ease</answer>", ["joyful", "angry, furious"])
    assert nemo_reward("acc+format", wheels)(gold, reply) == (want["score"], False)
    assert json.loads(gold)["options"]["D"] == "angry, furious"
    assert nemo_reward()("[joyful, surprised]", f"{THOUGHT}<answer>A,E</answer>") == (0, False)


def test_rows_that_cannot_be_scored():
    with pytest.raises(ValueError, match="'A,F' names none of the options, or another: A, B"):
        choice_gold(dict(answer="A,F", options=OPTIONS))
    with pytest.raises(ValueError, match="'joyful' does not begin with a letter"):
        choice_gold(dict(answer="A", options=["joyful"]))
    with pytest.raises(ValueError, match="names none"):
        choice_gold(dict(answer="", options=OPTIONS))


# verifiers and tinker

def test_as_verifiers_calls_it():
    "Only the parameters that a reward names are handed to it; components become metrics"
    reward, trace = verifiers_reward("acc+format+p1", wheels, gold="words"), verifiers_trace(
        "<answer>happy, glad</answer>")
    assert asyncio.run(reward(SimpleNamespace(words=["happy"]), trace)) == .7
    assert trace.metrics == dict(accuracy=.5, format=1.)


@pytest.mark.parametrize("is_plugged", [True, False], ids=["configuration", "method"])
def test_in_verifiers(tmp_path, is_plugged):
    "A task of verifiers' own scores a conversation by a reward that it is given in either way"
    vf = pytest.importorskip("verifiers.v1", reason="verifiers is missing")
    (tmp_path/"my_rewards.py").write_text(
        "from affectgpt_r1.engines import verifiers_reward\n"
        "emotions = verifiers_reward('acc+format+p1')\n")
    score = verifiers_reward("acc+format+p1", wheels)

    class Data(vf.TaskData):
        labels: list[str]

    class Task(vf.Task[Data]):
        @vf.reward
        async def emotions(self, task, trace) -> float: return await score(task, trace)

    data = Data(prompt="?", labels=["happy"])
    plugged = dict(emotions=dict(fn=f"{tmp_path/'my_rewards.py'}:emotions", weight=2))
    task = vf.Task(data, vf.TaskConfig(rewards=plugged)) if is_plugged else Task(data)
    reply = vf.AssistantMessage(content="<answer>happy, glad</answer>")
    trace = vf.Trace(task=vf.TraceTask(type="Task", data=task.data),
                     agent=dict(config=vf.AgentConfig()),
                     nodes=[vf.MessageNode(message=reply, sampled=True)])
    asyncio.run(task.score(trace))
    assert trace.reward == (1.4 if is_plugged else .7)
    assert trace.metrics == dict(accuracy=.5, format=1.)


def tinker_renderer(content):
    "A renderer that reads `content` out of whatever was sampled"
    return SimpleNamespace(
        build_generation_prompt=lambda messages: ("prompt", messages),
        get_stop_sequences=lambda: ["<|im_end|>"],
        parse_response=lambda action: (dict(role="assistant", content=content), "stop_sequence"))


def play(cls, content):
    "One turn of an environment"
    env = cls(tinker_renderer(content), [dict(role="user", content="?")], ["sad"])
    prompt, stop = asyncio.run(env.initial_observation())
    assert prompt == ("prompt", env.messages) and stop == ["<|im_end|>"]
    return asyncio.run(env.step([1, 2], extra=dict(stop_reason="stop")))


CONTENTS = [REPLIES[0], [dict(type="thinking", thinking="She is sad."),
                         dict(type="text", text="<answer>sad</answer>")]]


@pytest.mark.parametrize("content", CONTENTS, ids=["text", "parts"])
def test_as_tinker_calls_it(content):
    score = reply_scorer("acc+format", wheels, mode="think")
    cls = type("Env", (), engines._tinker_methods(score, SimpleNamespace, list))
    found = play(cls, content)
    assert found.reward == 1.2 and found.metrics == dict(accuracy=1, format=1)
    assert found.episode_done and found.next_observation == []


@pytest.mark.parametrize("content", CONTENTS, ids=["text", "parts"])
def test_in_tinker(content):
    types = pytest.importorskip("tinker_cookbook.rl.types", reason="tinker-cookbook is missing")
    cls = tinker_env("acc+format", wheels, mode="think")
    found = play(cls, content)
    assert issubclass(cls, types.Env) and isinstance(found, types.StepResult)
    assert found.reward == 1.2 and found.metrics == dict(accuracy=1, format=1)
    assert found.next_observation.length == 0


def test_a_missing_engine_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tinker_cookbook.rl.types", None)
    with pytest.raises(ImportError, match="pip install tinker-cookbook"): tinker_env()


# the page that says how to use them

PAGES = Path(__file__).parent.parent/"nbs"


def snippets(page):
    "The Python code in the prose of a page"
    cells = json.loads((PAGES/page).read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.findall(r"```python\n(.*?)```", prose, re.DOTALL)


def test_code_in_the_prose_of_the_page_works_as_far_as_it_can():
    "It parses, and what it imports from here is there"
    found = snippets("pages/engines.ipynb")
    assert len(found) == 11
    for code in found:
        for node in ast.walk(ast.parse(code)):
            if not isinstance(node, ast.ImportFrom) or "affectgpt_r1" not in node.module: continue
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), code


def test_an_answer_inside_a_thought_is_not_the_answer():
    options = ["A. happy", "B. sad", "C. angry", "D. worried", "E. excited"]
    gold = choice_gold(dict(answer="A,E", options=options))
    reply = "<think>maybe <answer>B</answer>? no</think><answer>A,E</answer>"
    words = "<think>maybe <answer>sad</answer>? no</think><answer>happy, excited</answer>"
    assert nemo_reward()(gold, reply) == nemo_reward()("happy, excited", words) == (1.0, True)


@pytest.mark.parametrize("answer", ["Both A and C", "Answer: A", "", "a"])
def test_an_odd_answer_is_no_gold(answer):
    with pytest.raises(ValueError, match="names none of the options"):
        choice_gold(dict(answer=answer, options=["A. happy", "B. sad", "C. angry"]))


def test_letters_that_come_twice_are_refused():
    with pytest.raises(ValueError, match="comes twice"):
        choice_gold(dict(answer="A", options=["A. happy", "A. sad"]))


@pytest.mark.parametrize("gold", [None, float("nan"), [], ""])
def test_no_gold_is_an_error(gold):
    with pytest.raises(ValueError, match="has no gold"):
        reply_scorer()("<answer>happy</answer>", gold)
