"Trained parts in one model; the released file of weights, into it and back, and what is refused"
import copy
import importlib.util
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

import numpy as np
from datasets import Dataset
from model_cases import human
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM, AutoProcessor, AutoTokenizer, BitsAndBytesConfig, CLIPConfig, CLIPModel,
    Dinov2Config, Dinov2Model, HubertModel, HyperCLOVAXConfig, LlamaConfig, PreTrainedTokenizerFast,
    Qwen2Config, Qwen3Config, SiglipConfig, SiglipModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor,
    Wav2Vec2Model, WavLMConfig, WavLMModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from affectgpt_r1.coldstart import cold_start
from affectgpt_r1.configuration import toy_config
from affectgpt_r1.convert import (
    from_released, load_released, read_released, released_protocol, released_state, save_released)
from affectgpt_r1.features import FeatureCache
from affectgpt_r1.inference import generate_replies, generation_config
from affectgpt_r1.labels import make_target
from affectgpt_r1.modeling import unwrap_peft
from affectgpt_r1.parts import load_parts, lora_config
from affectgpt_r1.processing import PLACEHOLDERS, TAGS, make_prompt
from affectgpt_r1.checkpoints import load_stage, save_stage

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
    AutoModelForCausalLM.from_config(decoder(**sizes | kwargs)).save_pretrained(folder)
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
    call = dict(parts, path=path, frame=TEMPLATE, visual="frame")
    return dict(state=state, path=path, base=base, processor=processor, call=call)


@pytest.mark.parametrize("decoder", [Qwen2Config, Qwen3Config, LlamaConfig])
@pytest.mark.parametrize("fusion", ["attention", "qformer"])
def test_any_decoder_says_what_it_said_before(tmp_path, decoder, fusion):
    parts = save_parts(tmp_path, decoder)
    model, processor = load_parts(**parts, fusion=fusion)
    ids = torch.tensor([processor.tokenizer("Hello there")["input_ids"]])
    model.save_pretrained(tmp_path / "whole")
    with torch.no_grad():
        alone = AutoModelForCausalLM.from_pretrained(parts["text_path"])(ids).logits
        inside = model(input_ids=ids).logits
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")(input_ids=ids).logits
    assert torch.allclose(inside, alone, atol=1e-6) and torch.allclose(again, inside, atol=1e-5)


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
    parts = save_parts(tmp_path, HyperCLOVAXConfig, logits_scaling=2.)
    with pytest.raises(ValueError, match="text: HyperCLOVAXForCausalLM does"): load_parts(**parts)


@pytest.mark.parametrize("spare", [20, 0])
def test_new_tags_start_as_the_mean_of_their_parts(tmp_path, spare):
    parts = save_parts(tmp_path, spare=spare)
    before = AutoTokenizer.from_pretrained(parts["text_path"])
    model, processor = load_parts(**parts, tag_tokens=True)
    tokenizer = processor.tokenizer
    assert model.config.tag_ids == tokenizer.convert_tokens_to_ids(TAGS)
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert len(table) == len(before) + max(spare, len(PLACEHOLDERS + TAGS))
        for tag in TAGS:
            mean = table[before(tag)["input_ids"]].mean(0)
            assert torch.allclose(table[tokenizer.convert_tokens_to_ids(tag)], mean)
    text = "<think>a</think><answer>b</answer>"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer.decode(processor.placeholder_ids, skip_special_tokens=True) == ""


def test_tags_are_text_by_default_and_stay_in_the_reply(parts):
    model, processor = load_parts(**parts)
    text = "<think>a</think><answer>b</answer>"
    ids = processor.tokenizer(text)["input_ids"]
    assert len(ids) > 10 and model.config.tag_ids == []
    assert processor.batch_decode([ids], skip_special_tokens=True) == [text]
    with pytest.raises(ValueError, match="tags as text only"):
        load_parts(**parts, **COMPAT, tag_tokens=True)


def change_tokenizer(folder, change):
    "Change the tokenizer in a folder"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    change(tokenizer)
    tokenizer.save_pretrained(folder)


def test_a_tag_that_a_decoder_knows_stays_as_it_is(tmp_path):
    parts = save_parts(tmp_path)
    change_tokenizer(parts["text_path"], lambda t: t.add_tokens(TAGS[:2]))
    table = AutoModelForCausalLM.from_pretrained(parts["text_path"]).lm_head.weight
    model, processor = load_parts(**parts, tag_tokens=True)
    ids = processor.tokenizer.convert_tokens_to_ids(TAGS)
    assert model.config.tag_ids == ids[2:]
    assert torch.equal(model.lm_head.weight[ids[:2]], table[ids[:2]])
    assert "tag_ids" in model.config.to_dict() and lora_config().trainable_token_indices is None
    change_tokenizer(parts["text_path"], lambda t: t.add_tokens(TAGS[3:], special_tokens=True))
    with pytest.raises(ValueError, match="text: </answer> is a special token"):
        load_parts(**parts)


def give_trained_head(folder, scale=0.5):
    "Logits of a trained decoder have a wide range; those of random weights have not"
    text = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    text.lm_head.weight.data.normal_(0, scale)
    text.save_pretrained(folder)


def one_clip(clip):
    "Features in place of a clip's media"
    return dict(video_features=torch.ones(8, 40), audio_features=torch.ones(8, 64),
                media_mask=torch.ones(2, dtype=torch.bool))


def learn_one_clip(parts, out, mode, tag_tokens, epochs, learning_rate):
    "Reply, its target, loss and probability of the first token after a cold start with LoRA"
    model, processor = load_parts(**parts, tag_tokens=tag_tokens)
    row = dict(name="a", video="v", audio="a", face="", subtitle="hello", labels=["sad"],
               description="low voice")
    processor.features = one_clip
    cold_start(model, processor, Dataset.from_list([row]), out, "paper", mode=mode, epochs=epochs,
               batch_size=1, learning_rate=learning_rate, lr_scheduler_type="linear",
               weight_decay=0.)
    model, processor = load_stage(out)
    processor.features = one_clip
    chats, target = [make_prompt(row, mode)], make_target(["sad"], mode=mode, think="low voice")
    batch = processor.training_batch(chats, [target])
    reply = generate_replies(model, processor, chats, generation_config(model, processor, mode))[0]
    with torch.no_grad(): out = model(**batch)
    first = (batch["labels"][0] >= 0).nonzero()[0, 0]
    p = out.logits[0, first - 1].softmax(-1)[batch["labels"][0, first]]
    return reply.text, target, out.loss.item(), p.item()


@pytest.mark.parametrize("tag_tokens", [False, True])
@pytest.mark.parametrize("mode", ["answer", "think"])
def test_with_lora_a_trained_decoder_learns_to_write_the_tags(tmp_path, mode, tag_tokens):
    "A tag whose frozen row is the mean of its parts' rows could never be the likeliest token"
    parts = save_parts(tmp_path)
    give_trained_head(parts["text_path"])
    reply, target, loss, p = learn_one_clip(parts, tmp_path / "out", mode, tag_tokens, 100, 1e-2)
    assert reply == target and loss < .01 and p > .95


def test_the_same_where_the_head_is_the_embedding(tmp_path):
    parts = save_parts(tmp_path, tie_word_embeddings=True)
    give_trained_head(parts["text_path"], .3)
    reply, target, *_, p = learn_one_clip(parts, tmp_path / "out", "answer", True, 150, 5e-3)
    assert reply == target and p > .8


@pytest.mark.parametrize("tied", [False, True])
def test_lora_trains_the_rows_of_new_tags_and_no_other(tmp_path, tied):
    parts = save_parts(tmp_path, tie_word_embeddings=tied)
    model, processor = load_parts(**parts, tag_tokens=True)
    before = [m.weight.clone() for m in (model.get_input_embeddings(), model.lm_head)]
    adapted = get_peft_model(model, lora_config(model))
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 1.0)
    tags = torch.tensor(processor.tokenizer.convert_tokens_to_ids(TAGS))
    ids = torch.cat([tags, tags])[None]
    adapted(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    merged = adapted.merge_and_unload()
    after = [m.weight for m in (merged.get_input_embeddings(), merged.lm_head)]
    for old, new in zip(before, after):
        moved = (old != new).any(1)
        assert moved[tags].all() and moved.sum() == len(tags)
    assert (after[0] is after[1]) == tied


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


def test_frames_are_squeezed_to_a_square(released, parts):
    frame = torch.zeros(40, 80, 3, dtype=torch.uint8).numpy()
    frame[:, :15] = 255  # a white edge, which the middle does not hold
    for processor in (released["processor"], load_parts(**parts)[1]):
        pixels = processor.image_processor([frame], return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, 48, 48) and pixels[0, 0, 20, 2] > 1


SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
CONVOLUTIONS = dict(
    conv_dim=(16, 32), conv_kernel=(160, 8), conv_stride=(80, 4), num_feat_extract_layers=2,
    num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)


def save_siglip(folder):
    sizes = dict(text_config=SMALL | dict(vocab_size=50),
                 vision_config=SMALL | dict(image_size=28, patch_size=14))
    model = SiglipModel(SiglipConfig(**sizes))
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size=dict(height=28, width=28)).save_pretrained(folder)
    return lambda pixels: model.eval().vision_model(pixels).pooler_output


def save_dinov2(folder):
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    model = Dinov2Model(Dinov2Config(image_size=42, patch_size=14, **sizes))
    model.save_pretrained(folder)
    BitImageProcessorPil(size=dict(shortest_edge=32),
                         crop_size=dict(height=28, width=28)).save_pretrained(folder)
    return lambda pixels: model.eval()(pixels).last_hidden_state[:, 0]


def save_hubert_like(config, model):
    def save(folder):
        tower = model(config(**SMALL, **CONVOLUTIONS))
        tower.save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
        def features(sound):
            waves = Wav2Vec2FeatureExtractor(do_normalize=True)(
                list(sound), sampling_rate=16000, return_tensors="pt")["input_values"]
            states = tower.eval()(waves, output_hidden_states=True)
            return sum([*states.hidden_states[-4:-1], states.last_hidden_state]).mean(1) / 3
        return features
    return save


def save_whisper(folder):
    sizes = dict(d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
                 decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=50)
    ends = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    model, extract = WhisperModel(WhisperConfig(**sizes, **ends)), WhisperFeatureExtractor()
    model.save_pretrained(folder)
    extract.save_pretrained(folder)
    def features(sound):  # over the whole 30 seconds, as Whisper listens
        mel = extract(list(sound), sampling_rate=16000, return_tensors="pt")["input_features"]
        return model.eval().get_encoder()(mel).last_hidden_state[:, :101].mean(1)
    return features


VISION = dict(siglip=save_siglip, dinov2=save_dinov2)
AUDIO = dict(wavlm=save_hubert_like(WavLMConfig, WavLMModel), whisper=save_whisper,
             wav2vec2=save_hubert_like(Wav2Vec2Config, Wav2Vec2Model))


@pytest.mark.parametrize("vision, audio", [
    ("siglip", "wavlm"), ("dinov2", "whisper"), ("dinov2", "wav2vec2")])
def test_other_towers_give_their_own_features_and_reload(tmp_path, vision, audio):
    parts = save_parts(tmp_path)
    see, hear = VISION[vision](tmp_path / vision), AUDIO[audio](tmp_path / audio)
    parts |= dict(vision_path=tmp_path / vision, audio_path=tmp_path / audio)
    model, processor = load_parts(**parts)
    pictures = np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3), dtype=np.uint8)
    pixels = processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
    sound = np.random.default_rng(1).normal(0, .1, (2, 32000)).astype(np.float32)
    sound[1] = 0  # silence
    assert pixels.shape == (3, 3, 28, 28)
    V, A = model.model.encode_media(pixels[None], processor.sound(sound)[None])
    with torch.no_grad():
        assert torch.allclose(V[0], see(pixels), atol=1e-5)
        assert torch.allclose(A[0], hear(sound), atol=1e-4)
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    processor = AutoProcessor.from_pretrained(tmp_path / "whole")
    batch = dict(input_ids=torch.tensor([processor.placeholder_ids]),
                 pixel_values_videos=pixels[None], input_values=processor.sound(sound)[None])
    with torch.no_grad():
        assert torch.allclose(again(**batch).logits, model(**batch).logits, atol=1e-5)
    assert again.config.vision_config.to_dict() == model.config.vision_config.to_dict()
    assert again.config.audio_config.to_dict() == model.config.audio_config.to_dict()


def test_a_folder_of_another_model_is_refused_by_name(tmp_path, parts):
    save_dinov2(tmp_path / "dinov2")
    with pytest.raises(ValueError, match="text: a model of type 'qwen2' can't be this tower"):
        load_parts(**parts | dict(vision_path=parts["text_path"]))
    with pytest.raises(ValueError, match="dinov2: a model of type 'dinov2' can't be this tower"):
        load_parts(**parts | dict(audio_path=tmp_path / "dinov2"))


def test_a_folder_that_lacks_weights_or_has_others_is_refused(tmp_path):
    parts = save_parts(tmp_path)
    hubert = HubertModel.from_pretrained(parts["audio_path"])
    state = hubert.state_dict()
    lacking = {k: x for k, x in state.items() if k != "encoder.layers.1.final_layer_norm.bias"}
    hubert.save_pretrained(parts["audio_path"], state_dict=lacking)
    with pytest.raises(ValueError, match=r"audio: .* \(missing: encoder.layers.1.final_layer_norm"):
        load_parts(**parts)
    more = state | {"encoder.layers.9.final_layer_norm.bias": torch.zeros(64),
                    "lm_head.bias": torch.zeros(9)}
    hubert.save_pretrained(parts["audio_path"], state_dict=more)
    with pytest.raises(ValueError, match=r"\(not known: encoder.layers.9.final_layer_norm.bias\)"):
        load_parts(**parts)
    del more["encoder.layers.9.final_layer_norm.bias"], more["masked_spec_embed"]
    hubert.save_pretrained(parts["audio_path"], state_dict=more)
    tower = load_parts(**parts)[0].model.audio_tower  # without a head for another task
    assert not tower.masked_spec_embed.any()  # used in HuBERT's own training only


def test_towers_keep_32_bits_where_that_is_asked_for(tmp_path, parts):
    half = parts | dict(dtype=torch.bfloat16)
    model, _ = load_parts(**half, tower_dtype=torch.float32)
    model.save_pretrained(tmp_path / "whole")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    for m in (model, again):
        kinds = [x.dtype for x in (m.model.vision_tower, m.model.audio_tower, m.model.fusion.
                                   video_proj.weight, m.lm_head.weight)]
        assert kinds == [torch.float32] * 3 + [torch.bfloat16]
    assert load_parts(**half)[0].model.audio_tower.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="tower_dtype is torch.float16; it must be"):
        load_parts(**half, tower_dtype=torch.float16)


def media(model, processor):
    "A prompt with random features"
    ids = torch.tensor([[9, *processor.placeholder_ids, 8]])
    return dict(input_ids=ids, video_features=torch.randn(1, 8, 40),
                audio_features=torch.randn(1, 8, 64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits_of_either_kind_a_clip_goes_through(parts, tmp_path, dtype):
    model, processor = load_parts(**parts | dict(dtype=dtype))
    whole, _ = load_parts(**parts)
    batch = media(model, processor)
    with torch.no_grad():
        assert torch.allclose(model(**batch).logits.float(), whole(**batch).logits, atol=.02)
        whole.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        every = copy.deepcopy(whole).to(dtype)  # the fusion, too
        for half in (again, every):
            assert torch.allclose(half(**batch).logits.float(), whole(**batch).logits, atol=.02)
            assert half.lm_head.weight.dtype == dtype


def test_loading_in_4_or_8_bits_leaves_towers_and_fusion(parts):
    model, _ = load_parts(**parts)
    skipped = HfQuantizer.get_modules_to_not_convert(
        model, keep_in_fp32_modules=model._keep_in_fp32_modules)
    layers = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    converted = [name for name in layers if should_convert_module(name, skipped)]
    assert len(converted) == 14 and all("language_model.layers" in name for name in converted)


needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")


@needs_bitsandbytes
@pytest.mark.parametrize("bits", [dict(load_in_4bit=True), dict(load_in_8bit=True)])
def test_a_decoder_in_4_or_8_bits_answers_and_reloads(tmp_path, bits):
    parts = save_parts(tmp_path, hidden_size=64, intermediate_size=128)  # blocks of 64 numbers
    how = BitsAndBytesConfig(**bits, bnb_4bit_compute_dtype=torch.float32)
    whole, processor = load_parts(**parts)
    whole.save_pretrained(tmp_path / "whole")
    model, _ = load_parts(**parts, quantization_config=how)
    model.save_pretrained(tmp_path / "small")
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=how)
    batch = media(whole, processor)
    with torch.no_grad(): logits = model(**batch).logits
    for m in (model, small, other):
        kinds = {name: {type(x).__name__ for x in part.modules() if isinstance(x, torch.nn.Linear)}
                 for name, part in m.model.named_children()}
        assert kinds["fusion"] == kinds["vision_tower"] == {"Linear"} and kinds["audio_tower"]
        assert kinds["language_model"] == {"Linear4bit" if "load_in_4bit" in bits else
                                           "Linear8bitLt"}
        with torch.no_grad(): assert torch.allclose(m(**batch).logits, logits, atol=.02)
    # on a CPU, bitsandbytes packs the weights of a model that has answered, and can't train it then
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=how)
    adapted = get_peft_model(fresh, lora_config()).train()
    adapted(**batch, labels=batch["input_ids"]).loss.backward()


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
    model, processor = from_released(**released["call"])
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
    half = released["call"] | dict(dtype=torch.bfloat16)
    model, _ = from_released(**half)
    inner = unwrap_peft(model).model
    assert inner.language_model.dtype == torch.bfloat16
    assert inner.vision_tower.dtype == torch.float32
    save_released(model, tmp_path / "back.pth")
    model.save_pretrained(tmp_path / "native")
    bare, _ = load_parts(**parts, **COMPAT)
    native = PeftModel.from_pretrained(bare, tmp_path / "native")
    for state in (read_released(tmp_path / "back.pth"), released_state(native)):
        assert state.keys() == released["state"].keys()
        for name, x in state.items():
            assert torch.equal(x, released["state"][name]) and x.dtype == torch.float32


def test_what_from_released_gives_is_saved_and_reloaded_as_any_stage(released, tmp_path):
    "Without a copy of the parts, and ready to be trained further"
    model, processor = from_released(**released["call"])
    save_stage(model, processor, tmp_path / "start")
    assert not list((tmp_path / "start").glob("model*.safetensors"))
    batch = media(model, processor)
    loaded, _ = load_stage(tmp_path / "start")
    with torch.no_grad():
        assert torch.allclose(loaded.eval()(**batch).logits, model(**batch).logits, atol=1e-5)
    assert any("lora_A" in name and p.requires_grad for name, p in loaded.named_parameters())


def test_a_tensor_is_left_out_only_where_it_is_named(released, tmp_path):
    extra = {"visual_encoder.position_ids": torch.arange(3), "other.bias": torch.ones(2)}
    torch.save(dict(model=released["state"] | extra), tmp_path / "extra.pth")
    call = released["call"] | dict(path=tmp_path / "extra.pth")
    with pytest.raises(ValueError, match="other.bias: is not known") as error:
        from_released(**call, ignore=["visual_encoder.position_ids"])
    assert str(error.value).count("\n- ") == 1
    from_released(**call, ignore=list(extra))


def test_the_released_protocol_asks_and_samples_as_the_authors():
    row, question = dict(name="a", subtitle="x"), "What does the person feel?"
    protocol = released_protocol(question)
    assert protocol.pop("prompt")(row, "answer") == make_prompt(row, question=question)
    assert protocol == dict(sample=True, temperature=1.0, top_p=0.9, max_new_tokens=1200)


def test_features_and_training_go_on_from_the_released_model(released, human, tmp_path):
    model, processor = from_released(**released["call"])
    rows, batch = human.select(range(2)), media(model, processor)
    cache = FeatureCache(tmp_path / "features", model, processor)
    assert cache.compute(rows, model, processor) == 2
    processor.features = cache
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    with torch.no_grad(): before = model(**batch).logits
    cold_start(model, processor, rows, tmp_path / "out", "paper", epochs=2, batch_size=2,
               learning_rate=1e-2)
    with torch.no_grad(): after = load_stage(tmp_path / "out")[0].eval()(**batch).logits
    assert (after - before).abs().max() > 1e-3


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
