"Clips and a toy model that the tests of the model share"
import pytest

from affectgpt_r1.data import load_mer2025
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.parts import make_toy_model
from affectgpt_r1.processing import make_prompt
from affectgpt_r1.toy import make_toy_corpus


@pytest.fixture(scope="module")
def human(tmp_path_factory):
    "Rows of a small corpus"
    corpus = make_toy_corpus(tmp_path_factory.mktemp("lab") / "corpus", preset="smoke", seed=1)
    return load_mer2025(corpus, "human")


@pytest.fixture(scope="module")
def toy(human):
    "(model, processor)"
    texts = [", ".join(r["labels"]) + r["subtitle"] for r in human]
    return make_toy_model(texts + list(QUESTIONS.values()))


def ask(processor, rows, **kwargs):
    "The questions about some rows, as the model takes them"
    return processor.apply_chat_template(
        [make_prompt(r) for r in rows], tokenize=True, return_dict=True, add_generation_prompt=True,
        padding=True, return_tensors="pt", **kwargs)


def silent(row): return {**row, "audio": ""}
