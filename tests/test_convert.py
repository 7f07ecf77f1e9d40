"Trained parts in one model; the released file of weights, into it and back, and what is refused"
import copy
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM, AutoTokenizer, CLIPConfig, CLIPModel, Gemma2Config, HubertModel,
    LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config, Wav2Vec2FeatureExtractor)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from affectgpt_r1.configuration import toy_config
from affectgpt_r1.convert import (
    from_released, load_released, read_released, released_state, save_released)
from affectgpt_r1.parts import load_parts
from affectgpt_r1.processing import PLACEHOLDERS, TAGS, make_prompt

TEMPLATE = "# {multi} {audio} {video} {subtitle} {question} #"
COMPAT = dict(compat="affectgpt", prompt_template=TEMPLATE)


def makers_tokenizer():
    "A byte-level tokenizer without any of our tokens"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def save_decoder(folder, decoder, spare, **kwargs):
    "A small random decoder with `spare` rows in its embedding, and its tokenizer"
    words = makers_tokenizer()
    sizes = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(words) + spare, bos_token_id=None,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id)
    AutoModelForCausalLM.from_config(decoder(**sizes, **kwargs)).save_pretrained(folder)
    words.save_pretrained(folder)


def save_parts(root, decoder=Qwen2Config, spare=20, **kwargs):
    "Folders as the makers of the three parts would leave them"
    torch.manual_seed(0)
    save_decoder(root / "text", decoder, spare, **kwargs)
    toy = toy_config(99, (3, 4, 5), 2, 1)
    text = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                vocab_size=99)
    vision = toy.vision_config.to_dict() | dict(projection_dim=40)
    clip = CLIPConfig(text_config=text, vision_config=vision, projection_dim=40)
    CLIPModel(clip).save_pretrained(root / "vision")
    square = dict(height=48, width=48)
    images = CLIPImageProcessorPil(size=dict(shortest_edge=48), crop_size=square)
    images.save_pretrained(root / "vision")
    HubertModel(toy.audio_config).save_pretrained(root / "audio")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / "audio")
    paths = {f"{part}_path": root / part for part in ("text", "vision", "audio")}
    return dict(paths, dtype=torch.float32)


def released_shapes():
    "Name and shape of each tensor of a released file, small"
    linear = dict(
        video_attention_mlp=(1, 40), affectgpt_proj=(32, 40), audio_attention_mlp=(1, 64),
        audio_llama_proj=(32, 64), multi_video_embs=(64, 40), multi_audio_embs=(64, 64),
        attention_mlp=(64, 128), fc_att=(2, 64), multi_llama_proj=(32, 64),
        image_llama_proj=(32, 40))
    sides = {"self_attn.q": (32, 32), "self_attn.k": (32, 16), "self_attn.v": (32, 16),
             "self_attn.o": (32, 32), "mlp.gate": (32, 48), "mlp.up": (32, 48),
             "mlp.down": (48, 32)}
    shapes = {}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for i in range(2):
        for part, (into, out) in sides.items():
            name = f"llama_model.base_model.model.model.layers.{i}.{part}_proj"
            shapes[f"{name}.lora_A.default.weight"] = 16, into
            shapes[f"{name}.lora_B.default.weight"] = out, 16
    return shapes


@pytest.fixture(scope="module")
def parts(tmp_path_factory): return save_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def released(parts, tmp_path_factory):
    "A base model and a file for it: names and shapes of the released one, small and random"
    torch.manual_seed(1)
    state = {name: torch.randn(shape) / 8 for name, shape in released_shapes().items()}
    path = tmp_path_factory.mktemp("file") / "checkpoint_000030_loss_0.751.pth"
    torch.save(dict(model=state, optimizer={}, config={}, scaler={}, epoch=30), path)
    base, processor = load_parts(**parts, **COMPAT)
    return dict(state=state, path=path, base=base, processor=processor)


@pytest.mark.parametrize("decoder", [Qwen2Config, Qwen3Config, LlamaConfig])
@pytest.mark.parametrize("fusion", ["attention", "qformer"])
def test_any_decoder_says_what_it_said_before(tmp_path, decoder, fusion):
    parts = save_parts(tmp_path, decoder)
    model, processor = load_parts(**parts, fusion=fusion)
    ids = torch.tensor([processor.tokenizer("Hello there")["input_ids"]])
    tags = processor.tokenizer.convert_tokens_to_ids(TAGS)
    old = torch.tensor([i not in tags for i in range(model.config.text_config.vocab_size)])
    model.save_pretrained(tmp_path / "whole")
    with torch.no_grad():
        alone = AutoModelForCausalLM.from_pretrained(parts["text_path"])(ids).logits
        inside = model(input_ids=ids).logits
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")(input_ids=ids).logits
    assert torch.allclose(inside[..., old], alone[..., old], atol=1e-6)
    assert not torch.allclose(inside, alone) and torch.allclose(again, inside, atol=1e-5)


def test_towers_are_the_makers(parts):
    model, _ = load_parts(**parts)
    clip = CLIPModel.from_pretrained(parts["vision_path"])
    hubert = HubertModel.from_pretrained(parts["audio_path"]).eval()
    pixels, sound = torch.randn(1, 2, 3, 48, 48), torch.randn(1, 2, 8000)
    V, A = model.model.encode_media(pixels, sound)
    with torch.no_grad():
        assert torch.allclose(V[0], clip.get_image_features(pixels[0]).pooler_output, atol=1e-5)
        out = hubert(sound[0], output_hidden_states=True)
    last4 = torch.stack([*out.hidden_states[-4:-1], out.last_hidden_state])
    assert torch.allclose(A[0], last4.mean(0).mean(1), atol=1e-5)


def test_a_decoder_with_a_head_of_its_own_kind_is_refused(tmp_path):
    parts = save_parts(tmp_path, Gemma2Config, head_dim=8, final_logit_softcapping=1.0)
    with pytest.raises(ValueError, match="Gemma2ForCausalLM does more"): load_parts(**parts)


@pytest.mark.parametrize("spare", [20, 0])
def test_new_tags_start_as_the_mean_of_their_parts(tmp_path, spare):
    parts = save_parts(tmp_path, spare=spare)
    before = AutoTokenizer.from_pretrained(parts["text_path"])
    model, processor = load_parts(**parts)
    tokenizer = processor.tokenizer
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert len(table) == len(before) + max(spare, len(PLACEHOLDERS + TAGS))
        for tag in TAGS:
            mean = table[before(tag)["input_ids"]].mean(0)
            assert torch.allclose(table[tokenizer.convert_tokens_to_ids(tag)], mean)
    text = "<think>a</think><answer>b</answer>"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.decode(processor.placeholder_ids, skip_special_tokens=True) == ""


def test_a_makers_length_limit_is_not_ours(tmp_path):
    parts = save_parts(tmp_path)
    text = AutoModelForCausalLM.from_pretrained(parts["text_path"])
    text.generation_config.max_new_tokens = 2048
    text.save_pretrained(parts["text_path"])
    assert load_parts(**parts)[0].generation_config.max_new_tokens is None


def test_for_released_weights_no_row_of_the_decoder_is_touched(released, parts):
    text = AutoModelForCausalLM.from_pretrained(parts["text_path"])
    ours, makers = (m.get_output_embeddings().weight for m in (released["base"], text))
    assert torch.equal(ours, makers)


def test_in_training_a_first_token_and_an_end_in_writing_neither(released):
    processor = released["processor"]
    chat = make_prompt(dict(name="a", video="", audio="", subtitle="Well."))
    say = processor.tokenizer.decode
    [asked] = processor.apply_chat_template([chat], tokenize=True, add_generation_prompt=True)
    assert say(asked).startswith("# <multi> <audio> <video> Well.") and say(asked).endswith(" #")
    batch = processor.training_batch([chat, chat], ["happy", "sad, tired"])
    row = "<|im_start|>" + say(asked) + "sad, tired###<|im_end|>"
    assert say(batch["input_ids"][1]) == row and not batch["attention_mask"][0, -1]
    assert say(batch["labels"][0][batch["labels"][0] >= 0]) == "happy###<|im_end|>"


def test_released_weights_need_the_authors_prompt(parts):
    with pytest.raises(ValueError, match="needs the authors' prompt"):
        load_parts(**parts, compat="affectgpt")


def test_frames_are_squeezed_for_the_released_weights_and_cut_out_by_default(released, parts):
    frame = torch.zeros(40, 80, 3, dtype=torch.uint8).numpy()
    frame[:, :15] = 255  # a white edge, which the middle does not hold
    processors = released["processor"], load_parts(**parts)[1]
    squeezed, cut = (p.image_processor([frame], return_tensors="pt")["pixel_values"]
                     for p in processors)
    assert squeezed.shape == cut.shape == (1, 3, 48, 48)
    assert squeezed[0, 0, 20, 2] > 1 > -1 > cut[0, 0, 20, 2]


def tokens_by_hand(state, V, A):
    "Multi, audio and video token, as the released model computes them"
    def lin(name, x): return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]
    v, a = lin("multi_video_embs", V.mean(1)), lin("multi_audio_embs", A.mean(1))
    s = lin("fc_att", lin("attention_mlp", torch.cat([v, a], 1)))
    return torch.stack([
        lin("multi_llama_proj", s[:, :1] * v + s[:, 1:] * a),
        lin("audio_llama_proj", (lin("audio_attention_mlp", A) * A).sum(1)),
        lin("affectgpt_proj", (lin("video_attention_mlp", V) * V).sum(1))], 1)


def decoder_by_hand(state, folder):
    "The decoder with the adapters in its weights"
    decoder = AutoModelForCausalLM.from_pretrained(folder)
    for name, W in decoder.named_parameters():
        key = f"llama_model.base_model.model.{name.removesuffix('.weight')}.lora_%s.default.weight"
        if key % "A" in state: W.data += 2 * state[key % "B"] @ state[key % "A"]
    return decoder


def test_converted_logits_are_those_of_the_formulas(released, parts):
    state = released["state"]
    model, processor = from_released(released["path"], **parts, frame=TEMPLATE, visual="frame")
    V, A = torch.randn(2, 8, 40), torch.randn(2, 8, 64)
    chats = [make_prompt(dict(name="a", video="v", audio="a", subtitle=s)) for s in ("one", "two")]
    ids = torch.tensor(processor.apply_chat_template(chats, tokenize=True))
    decoder = decoder_by_hand(state, parts["text_path"])
    with torch.no_grad():
        placeholders = torch.isin(ids, torch.tensor(processor.placeholder_ids))
        embeds = decoder.get_input_embeddings()(ids.masked_fill(placeholders, 0))
        embeds[placeholders] = tokens_by_hand(state, V, A).flatten(0, 1)
        ours = model(input_ids=ids, video_features=V, audio_features=A).logits
        assert torch.allclose(ours, decoder(inputs_embeds=embeds).logits, atol=1e-5)


def test_there_and_back_and_through_a_native_checkpoint(released, parts, tmp_path):
    half = parts | dict(dtype=torch.bfloat16)
    model, _ = from_released(released["path"], **half, frame=TEMPLATE)
    assert model.get_base_model().model.language_model.dtype == torch.bfloat16
    save_released(model, tmp_path / "back.pth")
    model.save_pretrained(tmp_path / "native")
    bare, _ = load_parts(**parts, **COMPAT)
    native = PeftModel.from_pretrained(bare, tmp_path / "native")
    for state in (read_released(tmp_path / "back.pth"), released_state(native)):
        assert state.keys() == released["state"].keys()
        for name, x in state.items():
            assert torch.equal(x, released["state"][name]) and x.dtype == torch.float32


NAMES = ["fc_att.bias", "image_llama_proj.weight",
         "llama_model.base_model.model.model.layers.1.mlp.down_proj.lora_B.default.weight"]
ADDED = ".base_layer", ".original_module", ".modules_to_save.default"  # by peft, to a name


def plain_name(name):
    "A weight's name as it was before adapters were added"
    for part in ADDED: name = name.replace(part, "")
    return name


def refusal(released, change, folder):
    "The message that a changed file gets; the model is as it was"
    state = dict(released["state"])
    change(state)
    torch.save(dict(model=state), folder / "changed.pth")
    model = copy.deepcopy(released["base"])
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(ValueError) as error: load_released(model, folder / "changed.pth")
    after = model.state_dict()
    for name, x in before.items():
        assert any(torch.equal(x, y) for other, y in after.items() if plain_name(other) == name)
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_a_renamed_and_a_misshapen_key_are_refused_by_name(released, tmp_path, name):
    missing = refusal(released, lambda s: s.pop(name), tmp_path)
    assert f"{name}: is missing" in missing and missing.count("\n- ") == 1
    assert "changed.pth" in missing
    renamed = refusal(released, lambda s: s.update({name + "x": s.pop(name)}), tmp_path)
    assert f"{name}: is missing" in renamed and f"{name}x: is not known" in renamed
    misshapen = refusal(released, lambda s: s.update({name: torch.zeros(3, 3)}), tmp_path)
    assert f"{name}: has shape (3, 3)" in misshapen


@pytest.mark.parametrize("value", [
    torch.tensor([1., float("nan")]), torch.tensor([1, 2]), [1., 2.]], ids=["nan", "int", "list"])
def test_what_is_no_number_is_refused_by_name(released, tmp_path, value):
    torch.save(dict(model=released["state"] | {"fc_att.bias": value}), tmp_path / "odd.pth")
    message = "odd.pth(.|\n)*- fc_att.bias: is not a tensor of finite"
    with pytest.raises(ValueError, match=message) as error:
        load_released(copy.deepcopy(released["base"]), tmp_path / "odd.pth")
    assert str(error.value).count("\n- ") == 1


@pytest.mark.parametrize("change", [
    lambda b: b[:-1], lambda b: b[:5000], lambda b: b"", lambda b: b"hello"])
def test_a_file_that_did_not_arrive_whole_is_refused(released, tmp_path, change):
    (tmp_path / "part.pth").write_bytes(change(released["path"].read_bytes()))
    message = "part.pth: is not a file that `torch.save` writes, or only a part"
    with pytest.raises(ValueError, match=message): read_released(tmp_path / "part.pth")
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        read_released(tmp_path / "nowhere.pth")


def test_an_empty_file_is_refused_and_the_rest_is_counted(released, tmp_path):
    torch.save(dict(model={}), tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="and 38 more"):
        load_released(copy.deepcopy(released["base"]), tmp_path / "empty.pth")


def test_nothing_in_a_file_is_executed(tmp_path):
    class Evil:
        def __reduce__(self): return Path.touch, (tmp_path / "was_here",)
    torch.save(dict(model={}, config=Evil()), tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="evil.pth: holds more than tensors"):
        read_released(tmp_path / "evil.pth")
    assert not (tmp_path / "was_here").exists()
    for content in ([1], {}, dict(model=[1])):
        torch.save(content, tmp_path / "list.pth")
        with pytest.raises(ValueError, match="no entry 'model'"):
            read_released(tmp_path / "list.pth")


def test_only_an_adapted_released_model_has_a_way_back(released, parts, tmp_path):
    with pytest.raises(ValueError, match="no adapters"):
        save_released(released["base"], tmp_path / "a.pth")
    with pytest.raises(ValueError, match="compat=None"):
        load_released(load_parts(**parts)[0], released["path"])
