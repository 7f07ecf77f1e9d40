"""A Qwen-Omni thinker through the command line, from a generated corpus to a table of scores"""

import json

import pandas as pd
import pytest

from affectgpt_r1 import cli, parts
from affectgpt_r1.benchmark import predict_unibench, unibench_scores
from affectgpt_r1.checkpoints import load_stage, save_stage
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.grpo import group_advantages, read_completions
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.omni import make_tiny_omni
from affectgpt_r1.toy import make_toy_corpus
from affectgpt_r1.unibench import UNIBENCH


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A corpus, and the folder of a tiny thinker"
    folder = tmp_path_factory.mktemp("omni")
    corpus = make_toy_corpus(folder / "corpus", preset="tiny", progress=False)
    texts = [" ".join(row["labels"]) + row["subtitle"] for row in load_mer2025(corpus, "human")]
    save_stage(*make_tiny_omni([*texts, *QUESTIONS.values()]), folder / "thinker")
    return folder


@pytest.fixture(scope="module")
def run(made):
    "A run folder after all stages; clips are read in other ways than the thinker's folder says"
    run, corpus = made / "run", made / "corpus"
    split = [f"--{name}={corpus}:{track}" for name, track in dict(
        caption="caption", human="human", test="ovmerd").items()]
    cli.main(["features", "--run-dir", str(run), "--model", str(made / "thinker"), *split,
              "--set", "pixels=[1, 1024]"])
    few = ["warmup_steps=0", "gradient_checkpointing=no"]
    cli.main(["sft", "--run-dir", str(run), "--recipe", "omni", "--set", "max_steps=1",
              "batch_size=2", "use_audio_in_video=yes", "num_frames=6", *few])
    cli.main(["grpo", "--run-dir", str(run), "--recipe", "omni", "--set", "steps=1",
              "num_prompts=2", "num_generations=2", "max_new_tokens=32", "num_frames=2", *few])
    cli.main(["evaluate", "--run-dir", str(run), "--set", "max_new_tokens=4"])
    return run


def test_settings_of_clips_go_from_stage_to_stage(run):
    "What a stage was given is saved with it, and is where the next begins"
    found = {}
    for stage in ("start", "cold_start", "grpo"):
        processor = load_stage(run / stage)[1]
        found[stage] = processor.num_frames, processor.use_audio_in_video, [*processor.pixels]
    assert found == dict(start=(4, False, [1, 1024]), cold_start=(6, True, [1, 1024]),
                         grpo=(2, True, [1, 1024]))


def test_the_table_and_the_explorer_read_a_thinkers_run(run, made):
    scores = json.loads((run / "scores.json").read_text())
    assert {name.split(",")[0] for name in scores} == {"cold_start", "grpo"}
    answers = read_completions(run / "grpo").groupby("clip", sort=False)
    clips = {row["name"] for row in load_mer2025(made / "corpus", "human")}
    for name, group in answers:   # as the explorer shows them
        assert name in clips and len(group) == 2 and {"accuracy", "format"} <= {*group}


def test_predict_with_other_frames(run, made, capsys, monkeypatch):
    clip = load_mer2025(made / "corpus", "ovmerd")[0]["video"]
    asked = ["predict", str(clip), "--model", str(run / "grpo")]
    cli.main([*asked, "--set", "num_frames=4"])
    assert str(clip) in capsys.readouterr().out
    with pytest.raises(ValueError, match="'frames'.*num_frames"):
        cli.main([*asked, "--set", "frames=4"])
    with pytest.raises(ValueError, match="num_frames is 0"):
        cli.main([*asked, "--set", "num_frames=0"])


def test_settings_of_a_thinker_are_no_settings_of_affectgpt(tmp_path):
    from affectgpt_r1.omni_processing import set_media
    from affectgpt_r1.parts import make_toy_model
    with pytest.raises(ValueError, match="num_frames: a setting of Qwen-Omni"):
        set_media(make_toy_model(["happy"])[1], dict(num_frames=4))


def test_the_nine_test_sets(run, made, tmp_path):
    "Their clips are asked about, and the table is that of any other model"
    model, processor = load_stage(run / "grpo")
    out = predict_unibench(model.eval(), processor, made / "corpus" / "unibench", tmp_path,
                           max_new_tokens=2, batch_size=4)
    table = unibench_scores(out, made / "corpus" / "unibench", draws=5)
    assert isinstance(table, pd.DataFrame) and [*table["dataset"]] == [*UNIBENCH, "mean"]


def test_plan_says_that_it_is_not_for_thinkers(made):
    with pytest.raises(ValueError, match="this is a 'qwen2_5_omni_thinker'.*recipe `omni`"):
        cli.main(["plan", "--gib", "80", "--model", str(made / "thinker")])


def test_weights_are_hashed_once_as_they_are_loaded(made, monkeypatch):
    "7 billion of them take a while"
    from affectgpt_r1 import checkpoints
    counted, real = [], parts.source_hash
    monkeypatch.setattr(parts, "source_hash", lambda model: counted.append(1) or real(model))

    def load_omni(**source):
        model, processor = make_tiny_omni(["happy"])
        parts.remember_source(model, omni=source)
        return model, processor

    monkeypatch.setattr(checkpoints, "load_omni", load_omni)
    model = checkpoints._load_base(dict(omni=dict(path="x"), hash="y"), dict(dtype="z"))
    assert model.source["omni"] == dict(path="x") and len(counted) == 1
