"""The preset `laptop`: what its encoder hears, its stages, and a model that is asked by command"""


import re
import shutil

import pytest
import torch
from conftest import ROOT
from transformers import WhisperConfig, WhisperModel

from affectgpt_r1 import demo, modeling, real_parts
from affectgpt_r1.cli import main
from affectgpt_r1.inference import AffectGPT
from affectgpt_r1.modeling import segment_features


@pytest.fixture(scope="module")
def whisper():
    torch.manual_seed(0)
    sizes = dict(d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
                 decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=50,
                 max_source_positions=100)
    ends = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    return WhisperModel(WhisperConfig(**sizes, **ends)).get_encoder().eval()


@torch.no_grad()
def test_frames_alone_are_what_the_encoder_computes(whisper, monkeypatch):
    "On a whole spectrogram nothing differs; on a short one only what lies behind it is left out"
    mel = torch.randn(3, 80, 200)
    assert torch.equal(modeling._frames_alone(whisper, mel), whisper(mel).last_hidden_state)
    short = mel[None, ..., :63]
    padded = segment_features(whisper, short)
    monkeypatch.setattr(whisper.config, "pad_segments", False, raising=False)
    alone = segment_features(whisper, short)
    assert alone.shape == padded.shape == (1, 3, 16) and not torch.allclose(alone, padded)
    assert torch.equal(alone[0], modeling._frames_alone(whisper, short[0]).mean(1))


# ---- asking a model by command ----


@pytest.fixture(scope="module")
def toy():
    return demo.cold_started_toy()


def test_predict_asks_the_model_that_is_there(toy, tmp_path, monkeypatch, capsys):
    "The laptop's where it was trained; here a copy of the toy stands for it"
    path = toy.test[0]["video"]
    wanted = AffectGPT(toy.model, toy.processor).predict(path, subtitle="So it goes.")
    shutil.copytree(toy.folder / "cold_start", tmp_path / "grpo")
    monkeypatch.setenv("AFFECTGPT_R1_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "cold_started_toy", lambda: 1 / 0)
    demo.remember_laptop(tmp_path / "grpo")
    main(["predict", path, "--subtitle", "So it goes."])
    assert capsys.readouterr().out.startswith(f"{path}: {wanted.reply}\nprobabilities: ")
    shutil.rmtree(tmp_path / "grpo")
    assert demo.laptop_folder() is None
    with pytest.raises(ZeroDivisionError):   # the toy, then
        main(["predict", path])
    with pytest.raises(FileNotFoundError, match="run `make laptop`"):
        main(["predict", path, "--model", "laptop"])
    with pytest.raises(ValueError, match="--subtitle says what is heard in one clip; 2 are"):
        main(["predict", path, path, "--subtitle", "So it goes."])


def test_what_make_test_installs_is_the_decoder():
    names = re.search(r"\^\(([\w|-]+)\)==", (ROOT / "Makefile").read_text())[1].split("|")
    asked = real_parts._PARTS["text_path"].packages.values()
    assert sorted(names) == sorted(what.split("==")[0] for what in asked)
