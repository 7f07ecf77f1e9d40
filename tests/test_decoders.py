"A grid of decoders: each is loaded from its folder, taught a clip, saved and loaded again"
import json
import shutil

import pytest

torch = pytest.importorskip("torch", reason="needs the `train` extra")

from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig, AutoModelForCausalLM, BertConfig, BloomConfig, CLIPVisionConfig,
    CLIPVisionModelWithProjection, CohereConfig, DynamicCache, FalconConfig, Gemma2Config,
    Gemma3Config, Gemma3TextConfig, GPT2Config,
    GPTNeoXConfig, GraniteConfig, HubertConfig, HubertModel, LlamaConfig, MambaConfig,
    MistralConfig, Olmo2Config, OPTConfig, Phi3Config, PhiConfig, PreTrainedTokenizerFast,
    Qwen2Config, Qwen2VLConfig, Qwen3Config, SmolLM3Config, StableLmConfig, T5Config,
    Wav2Vec2FeatureExtractor)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from affectgpt_r1.chat_templates import default_template, drop_thought
from affectgpt_r1.checkpoints import adapters_for, load_stage, save_stage
from affectgpt_r1.coldstart import Collator
from affectgpt_r1.configuration import NO_DROPOUT
from affectgpt_r1.decoders import check_kind, linear_names
from affectgpt_r1.inference import generate_replies, generation_config
from affectgpt_r1.labels import QUESTIONS
from affectgpt_r1.parts import load_parts, lora_config
from affectgpt_r1.processing import PLACEHOLDERS, make_prompt
from affectgpt_r1.shared_prompts import takes_packed_rows

TEXTS = [*QUESTIONS.values(), "happy, sad, angry, worried", "Well, here we are. Hello. user model"]

# Chat templates as the families have them: what is written, not the words of the makers
LOOP, ASK = "{% for m in messages %}", "{% if add_generation_prompt %}"
QWEN = (LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASK +
        "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}"
        "<think>\n\n</think>\n\n{% endif %}{% endif %}")
LLAMA = ("{{ bos_token }}Today: {{ strftime_now('%d %b %Y') }}\n\n" + LOOP +
         "<|start|>{{ m.role }}<|stop|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}" + ASK +
         "<|start|>assistant<|stop|>\n\n{% endif %}")
GEMMA = ("{{ bos_token }}{% if messages[0].role == 'system' %}"
         "{{ raise_exception('no system role') }}{% endif %}" + LOOP +
         "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
         "{{ m.content | trim }}<end_of_turn>\n{% endfor %}" + ASK +
         "<start_of_turn>model\n{% endif %}")
MISTRAL = ("{{ bos_token }}" + LOOP + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
           "{{ raise_exception('roles must alternate') }}{% endif %}"
           "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}"
           "{{ eos_token }}{% endif %}{% endfor %}")
PHI = (LOOP + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}" + ASK +
       "<|assistant|>\n{% else %}{{ eos_token }}{% endif %}")
THINKS = (LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}" + ASK +
          "<|assistant|><think>\n{% endif %}")


def make_tokenizer(template, special, pieces=False, first=False, **ends):
    "A tokenizer of a family: bytes or pieces with a sign for the blank, with a first token or not"
    core = Tokenizer(models.BPE(byte_fallback=pieces, unk_token="<unk>" if pieces else None))
    alphabet = [] if pieces else sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [*special, *(["<unk>"] if pieces else [])]
    if pieces:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        core.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=special, show_progress=False))
    if first:
        bos = ends["bos_token"]
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **ends)
    tokenizer.chat_template = template
    return tokenizer


TOKENIZERS = dict(
    qwen=lambda: make_tokenizer(
        QWEN, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>",
        pad_token="<|endoftext|>"),
    llama=lambda: make_tokenizer(   # a first token, a date, an end of turn that is no eos, no pad
        LLAMA, ["<|bos|>", "<|eos|>", "<|start|>", "<|stop|>", "<|eot_id|>"], first=True,
        bos_token="<|bos|>", eos_token="<|eos|>"),
    gemma=lambda: make_tokenizer(
        GEMMA, ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], pieces=True,
        first=True, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"),
    mistral=lambda: make_tokenizer(
        MISTRAL, ["<s>", "</s>", "[INST]", "[/INST]"], pieces=True, first=True, bos_token="<s>",
        eos_token="</s>"),
    phi=lambda: make_tokenizer(   # the padding is the end token, and a turn ends with another one
        PHI, ["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"],
        bos_token="<|endoftext|>", eos_token="<|endoftext|>", pad_token="<|endoftext|>"),
    gpt=lambda: make_tokenizer(   # no chat template, no padding
        None, ["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>"),
    thinks=lambda: make_tokenizer(
        THINKS, ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"], bos_token="<|bos|>",
        eos_token="<|end|>"))

GRID = dict(
    qwen2=(Qwen2Config, "qwen", dict(num_key_value_heads=2)),
    qwen2_tied=(Qwen2Config, "qwen", dict(tie_word_embeddings=True)),
    qwen3=(Qwen3Config, "qwen", dict(num_key_value_heads=2, head_dim=8)),
    llama=(LlamaConfig, "llama", {}),
    mistral=(MistralConfig, "mistral", dict(num_key_value_heads=2, sliding_window=None)),
    mistral_narrow=(MistralConfig, "mistral", dict(sliding_window=8)),
    gemma2=(Gemma2Config, "gemma", dict(
        head_dim=8, final_logit_softcapping=20., attn_logit_softcapping=.5)),
    gemma3=(Gemma3TextConfig, "gemma", dict(head_dim=8, sliding_window=4096)),
    phi3=(Phi3Config, "phi", {}),
    phi=(PhiConfig, "thinks", {}),               # its head has a bias
    gpt2=(GPT2Config, "gpt", {}),                # learnt positions
    opt=(OPTConfig, "gpt", dict(ffn_dim=48, word_embed_proj_dim=32)),
    gpt_neox=(GPTNeoXConfig, "gpt", {}),
    falcon=(FalconConfig, "gpt", {}),
    bloom=(BloomConfig, "gpt", {}),              # ALiBi: no positions
    olmo2=(Olmo2Config, "thinks", {}),
    stablelm=(StableLmConfig, "qwen", {}),
    smollm3=(SmolLM3Config, "llama", dict(num_key_value_heads=2)),
    granite=(GraniteConfig, "llama", dict(logits_scaling=2., embedding_multiplier=3.)),
    cohere=(CohereConfig, "qwen", dict(logit_scale=.25)))
ROW_BY_ROW = "mistral_narrow", "gemma2", "gpt2", "opt", "bloom"   # a window, a bound, positions
ROW = dict(name="a", video="v.mp4", audio="a.wav", face="", subtitle="Hello.", labels=["sad"],
           description="")


@pytest.fixture(scope="session")
def towers(tmp_path_factory):
    "Folders of a small CLIP and a small HuBERT"
    root = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    CLIPVisionModelWithProjection(CLIPVisionConfig(
        **sizes, image_size=16, patch_size=8, projection_dim=16)).save_pretrained(root / "vision")
    CLIPImageProcessorPil(
        size=dict(height=16, width=16), do_center_crop=False).save_pretrained(root / "vision")
    HubertModel(HubertConfig(
        **sizes | dict(num_hidden_layers=4), conv_dim=(8, 8), conv_kernel=(160, 8),
        conv_stride=(80, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, feat_extract_norm="layer",
        **NO_DROPOUT)).save_pretrained(root / "audio")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(root / "audio")
    return dict(vision_path=root / "vision", audio_path=root / "audio", dtype=torch.float32)


def save_decoder(folder, config, tokenizer, **more):
    "A small random decoder, whose logits are as wide as those of a trained one, and its tokenizer"
    tokenizer = TOKENIZERS[tokenizer]() if isinstance(tokenizer, str) else tokenizer
    sizes = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=len(tokenizer) + 16, max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)
    torch.manual_seed(0)
    text = AutoModelForCausalLM.from_config(config(**sizes | more))
    scale = getattr(text.config, "logits_scaling", 1.) / getattr(text.config, "logit_scale", 1.)
    text.get_output_embeddings().weight.data.normal_(0, .5 * scale)
    if (bias := text.get_output_embeddings().bias) is not None: bias.data.normal_()
    text.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def one_clip(clip):
    "Features in place of a clip's media"
    generator = torch.Generator().manual_seed(len(clip["video"]))
    V, A = (torch.randn(8, 16, generator=generator) for _ in range(2))
    return dict(video_features=V, audio_features=A, media_mask=torch.ones(2, dtype=torch.bool))


@pytest.fixture(scope="session")
def decoder(towers, tmp_path_factory):
    "(model, processor, folder of the decoder) of a family"
    def load(name):
        config, tokenizer, more = GRID[name]
        folder = save_decoder(tmp_path_factory.mktemp(name) / name, config, tokenizer, **more)
        model, processor = load_parts(folder, **towers)
        processor.features = one_clip
        return model, processor, folder
    return load


def check_row(processor, batch):
    "The loss is on the reply and its end, behind the prompt; there is one first token at most"
    tokenizer, [ids], [labels] = processor.tokenizer, batch["input_ids"], batch["labels"]
    reply = labels[labels >= 0].tolist()
    [prompt] = processor.apply_chat_template(
        [make_prompt(ROW)], tokenize=True, add_generation_prompt=True)
    assert ids.tolist() == prompt + reply and reply[-1] == processor.end_id
    assert tokenizer.decode(reply[:-1]) == "<answer>sad</answer>"
    assert [i for i in prompt if i in processor.placeholder_ids] == processor.placeholder_ids
    if tokenizer.bos_token_id is not None: assert prompt.count(tokenizer.bos_token_id) <= 1
    assert "<think>" not in tokenizer.decode(prompt)


def learn(model, batch, most=200):
    "Train adapters and fusion on one batch, until its reply is the likeliest at each place"
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, betas=(.8, .95))
    labels = batch["labels"][:, 1:]
    model.train()
    for step in range(most):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 5) * (1 - step / most)
        optimizer.zero_grad()
        out = model(**batch)
        if out.loss < .2 and (out.logits[:, :-1].argmax(-1) == labels)[labels >= 0].all(): break
        out.loss.backward()
        optimizer.step()
    model.eval()
    return out.loss.item()


def write(model, processor, rows=(ROW,)):
    "Greedy replies"
    config = generation_config(model, processor, max_new_tokens=12)
    return generate_replies(model, processor, [make_prompt(row) for row in rows], config)


@torch.no_grad()
def check_padding(model, processor):
    "A prompt that is padded on the left says what it says alone, with a cache and without"
    short, long = ROW, ROW | dict(video="long.mp4", subtitle="Well, here we are. Hello. Hello.")
    alone = [write(model, processor, [row])[0] for row in (short, long)]
    assert [r.ids for r in write(model, processor, [short, long])] == [r.ids for r in alone]
    chats = [make_prompt(row) for row in (short, long)]
    ask = dict(tokenize=True, return_dict=True, add_generation_prompt=True, padding=True,
               return_tensors="pt")
    both = model(**processor.apply_chat_template(chats, **ask)).logits[:, -1]
    single = torch.stack([model(**processor.apply_chat_template([c], **ask)).logits[0, -1]
                          for c in chats])
    assert torch.allclose(both, single, atol=1e-3)
    config = generation_config(model, processor, max_new_tokens=12, use_cache=False)
    slow = generate_replies(model, processor, chats, config)
    assert [r.ids for r in slow] == [r.ids for r in alone]


def packed_difference(model, processor):
    "Largest difference of a log-probability between packed rows and rows of their own"
    batch = processor.apply_chat_template(
        [make_prompt(ROW)] * 3, tokenize=True, return_dict=True, add_generation_prompt=True,
        padding=True, return_tensors="pt")
    answers = torch.randint(3, 90, (3, 5), generator=torch.Generator().manual_seed(0))
    batch["input_ids"] = torch.cat([batch["input_ids"], answers], 1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][1, -2:] = 0
    def logps(**how):
        logits = model(**batch, logits_to_keep=6, **how).logits[:, :-1].log_softmax(-1)
        return logits.gather(-1, answers[..., None])[..., 0]
    with torch.no_grad(): rows, packed = logps(), logps(prompt_of=torch.zeros(3).long())
    seen = batch["attention_mask"][:, -5:] > 0
    return (rows - packed)[seen].abs().max().item()


def prefill_difference(model, processor):
    "Largest difference of a logit between prompts that are read once and in all their rows"
    batch = processor.apply_chat_template(
        [make_prompt(ROW)] * 2 + [make_prompt(ROW | dict(subtitle="No."))] * 2, tokenize=True,
        return_dict=True, add_generation_prompt=True, padding=True, return_tensors="pt")
    ids, there = torch.arange(5, 9)[:, None], torch.ones(4, 1).long()
    read, decoder = [], model.get_base_model().model.language_model

    def next_logits():
        "Of the first token, which all rows of a prompt share, and of the second, which they do not"
        cache = DynamicCache(config=decoder.config)
        first = model(**batch, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        mask = torch.cat([batch["attention_mask"], there], 1)
        how = dict(attention_mask=mask, past_key_values=cache, use_cache=True)
        return torch.cat([first, model(input_ids=ids, **how).logits], 1)

    hook = decoder.register_forward_pre_hook(
        lambda module, args, given: read.append(len(given["inputs_embeds"])), with_kwargs=True)
    all_rows = next_logits().detach()   # with gradients nothing is shared
    with torch.no_grad(): shared = next_logits()
    hook.remove()
    assert read == [4, 4, 2, 4]
    return (all_rows - shared).abs().max().item()


@pytest.mark.parametrize("name", GRID)
def test_a_decoder_is_loaded_taught_saved_and_loaded_again(decoder, name, tmp_path):
    model, processor, folder = decoder(name)
    batch = Collator(processor)([ROW])
    check_row(processor, batch)
    save_stage(model, processor, tmp_path / "whole")
    whole, _ = load_stage(tmp_path / "whole")
    inputs = {name: x for name, x in batch.items() if name != "labels"}
    with torch.no_grad(): said = [m(**inputs).logits for m in (model.eval(), whole.eval())]
    assert torch.allclose(*said, atol=1e-4)
    adapted = get_peft_model(model, lora_config(model))
    loss = learn(adapted, batch)
    assert loss < .3
    reply = write(adapted, processor)[0]
    assert reply.text == "<answer>sad</answer>" and reply.ids[-1] == processor.end_id
    check_padding(adapted, processor)
    save_stage(adapted, processor, tmp_path / "stage")
    again, reader = load_stage(tmp_path / "stage")
    reader.features = one_clip
    with torch.no_grad():
        assert torch.allclose(again.eval()(**inputs).logits, adapted(**inputs).logits, atol=1e-4)
    assert write(again, reader)[0].text == reply.text
    takes = takes_packed_rows(model.config, batch["input_ids"].shape[1] + 5)
    assert takes == (name not in ROW_BY_ROW)
    if takes: assert packed_difference(adapted, processor) < 1e-4
    if takes: assert prefill_difference(adapted, processor) < 1e-4


# How a maker's generation_config.json may ask a decoder to write
MAKERS = dict(
    do_sample=True, temperature=.1, top_k=2, top_p=.1, min_p=.5, typical_p=.2, epsilon_cutoff=.1,
    eta_cutoff=.1, repetition_penalty=1.5, no_repeat_ngram_size=1, min_length=200,
    min_new_tokens=10, max_length=5, bad_words_ids=[[7], [9, 8]], sequence_bias=[[[7], 9.]],
    suppress_tokens=[7, 8, 9], begin_suppress_tokens=[7, 8, 9], forced_bos_token_id=7,
    forced_eos_token_id=7, exponential_decay_length_penalty=[2, 1.9], num_beams=2,
    length_penalty=9., early_stopping=True, num_return_sequences=2, guidance_scale=3.,
    watermarking_config={},
    renormalize_logits=True, remove_invalid_values=True, stop_strings=["e"], use_cache=False,
    return_dict_in_generate=True, output_scores=True, prompt_lookup_num_tokens=2, max_time=1e-9)


@pytest.fixture(scope="module")
def qwen(towers, tmp_path_factory):
    "(model, processor, folder) of a Qwen2 that has learnt nothing"
    root = tmp_path_factory.mktemp("qwen")
    folder = save_decoder(root / "text", Qwen2Config, "qwen")
    model, processor = load_parts(folder, **towers)
    processor.features = one_clip
    return model, processor, folder


def drawn(model, processor):
    "Sampled as trl does: with a generation config of its own"
    from transformers import GenerationConfig
    batch = processor.apply_chat_template(
        [make_prompt(ROW)] * 2, tokenize=True, return_dict=True, add_generation_prompt=True,
        padding=True, return_tensors="pt")
    config = GenerationConfig(max_new_tokens=12, do_sample=True, temperature=1., top_p=1., top_k=0,
                              eos_token_id=[2], pad_token_id=0)
    torch.manual_seed(0)
    return model.generate(**batch, generation_config=config).tolist()


@pytest.mark.parametrize("name", MAKERS)
def test_a_makers_way_of_writing_acts_only_where_it_is_asked_for(qwen, name, monkeypatch):
    model, processor, _ = qwen
    before = write(model, processor)[0].ids, drawn(model, processor)
    with monkeypatch.context() as patch:
        patch.setattr(model.generation_config, name, MAKERS[name])
        assert (write(model, processor)[0].ids, drawn(model, processor)) == before


def test_a_makers_way_of_writing_stays_in_its_folder(qwen, towers, tmp_path):
    folder = tmp_path / "text"
    shutil.copytree(qwen[2], folder)
    fields = {k: x for k, x in MAKERS.items() if not k.startswith(("forced", "max_length"))}
    (folder / "generation_config.json").write_text(json.dumps(fields | dict(eos_token_id=[2, 0])))
    model, processor = load_parts(folder, **towers)
    asked = {"bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens"}
    found = model.generation_config.to_diff_dict().keys() - {"transformers_version"}
    assert found <= asked and model.generation_config.eos_token_id == [2, 0]
    assert model.generation_config.suppress_tokens == processor.placeholder_ids
    processor.features, chats = one_clip, [make_prompt(ROW)]
    def first(**how):
        config = generation_config(model, processor, max_new_tokens=2, **how)
        return generate_replies(model, processor, chats, config)[0].ids[0]
    assert first() != first(bad_words_ids=[[first()]])   # asked for, it acts


def refusal(towers, folder, **how):
    "What `load_parts` says"
    with pytest.raises(ValueError) as error: load_parts(folder, **towers | how)
    return str(error.value)


def save_random(folder, config):
    "A random model of this configuration"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    TOKENIZERS["qwen"]().save_pretrained(folder)
    return folder


SIZES = dict(vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
             num_attention_heads=4)


@pytest.mark.parametrize("config,words", [
    (BertConfig(**SIZES), "BertLMHeadModel looks at later tokens"),
    (MambaConfig(**SIZES, state_size=4), "MambaForCausalLM takes no past_key_values"),
    (OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=16), "OPTForCausalLM has 16 numbers")])
def test_a_model_that_can_not_be_the_decoder_is_refused_by_name(towers, tmp_path, config, words):
    said = refusal(towers, save_random(tmp_path / "text", config))
    assert said.startswith(f"{tmp_path / 'text'}: {words}")


@pytest.mark.parametrize("config,words", [
    (T5Config(), "'t5' has an encoder of its own"), (Qwen2VLConfig(), "'qwen2_vl' holds more than"),
    (Gemma3Config(), "'gemma3' holds more than a decoder"),
    (HubertConfig(), "'hubert' is no causal language model")])
def test_another_kind_of_model_is_refused_before_its_weights_are_read(
        towers, tmp_path, config, words):
    config.save_pretrained(tmp_path)
    assert refusal(towers, tmp_path).startswith(f"{tmp_path}: a model of type {words}")


def test_a_checkpoint_of_ours_is_no_decoder(qwen, towers, tmp_path):
    model, processor, _ = qwen
    save_stage(model, processor, tmp_path)
    assert "'affectgpt' holds more than a decoder" in refusal(towers, tmp_path)


DROPS = "{% for m in messages %}{{ m.role }}{% endfor %}"
SHOUTS = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
NEEDS_SYSTEM = ("{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}"
                "{% endif %}")


@pytest.mark.parametrize("template,words", [
    (DROPS, "does not write a prompt as it is"), (SHOUTS, "does not write a prompt as it is"),
    (NEEDS_SYSTEM, "refuses a prompt (TemplateError: no system message)")])
def test_a_chat_template_that_loses_the_prompt_is_refused(
        qwen, towers, tmp_path, template, words):
    tokenizer = TOKENIZERS["qwen"]()
    tokenizer.chat_template = template
    said = refusal(towers, save_decoder(tmp_path / "text", Qwen2Config, tokenizer))
    assert said.startswith(f"{tmp_path / 'text'}: its chat template {words}")


def test_a_tokenizer_without_an_end_is_refused(towers, tmp_path):
    tokenizer = make_tokenizer(None, ["<|pad|>"], pad_token="<|pad|>")
    said = refusal(towers, save_decoder(tmp_path / "text", LlamaConfig, tokenizer))
    assert "its tokenizer has no token that ends a reply" in said


def prompt_of(processor, **how):
    return processor.apply_chat_template([make_prompt(ROW)], add_generation_prompt=True, **how)[0]


def test_a_prompt_is_the_same_on_every_day(decoder, monkeypatch):
    _, processor, _ = decoder("llama")
    assert "Today: 26 Jul 2024\n" in prompt_of(processor)
    assert processor.tokenizer.decode(processor.end_id) == "<|eot_id|>"
    for template in ("{{ strftime_now('%B %-d, %Y') }}", "{% set f = '%Y-%m-%d' %}"
                     "{% if strftime_now is defined %}{{ strftime_now(f) }}{% endif %}"):
        text = prompt_of(processor, chat_template=template + "{{ messages[0].content }}")
        assert text.startswith(("July 26, 2024", "2024-07-26"))


def test_a_thought_that_the_template_begins_is_ours_to_write(decoder):
    _, processor, _ = decoder("phi")
    assert prompt_of(processor).endswith("<|assistant|>")
    _, processor, _ = decoder("qwen3")
    assert prompt_of(processor).endswith("assistant\n")
    asked = prompt_of(processor, enable_thinking=False)   # whoever sets the switch gets it
    assert asked.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("begun", [
    "<thought>\n", "[THINK]", "◁think▷", "<seed:think>", "<reasoning>\n\n</reasoning>\n",
    "<thinking>\n\n</thinking>", "<think></think>"])
def test_a_thought_in_any_tag_is_ours_to_write(begun):
    prompt = "<|user|>What does <answer></answer> say?<|end|><|assistant|>"
    template = THINKS.replace("<think>\n", begun)
    assert drop_thought(prompt + begun, template) == prompt == drop_thought(prompt, template)
    assert drop_thought(prompt + begun, PHI) == prompt + begun   # it was not the template's


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_torn_file_of_a_decoder_names_the_folder(towers, tmp_path, name):
    folder = save_decoder(tmp_path / "decoder", LlamaConfig, "llama")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for content in (pointer, (folder / name).read_bytes()[:200]):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=str(folder)): load_parts(folder, **towers)


def test_without_a_chat_template_the_first_token_is_there(towers, tmp_path):
    tokenizer = TOKENIZERS["gemma"]()
    tokenizer.chat_template = None
    folder = save_decoder(tmp_path / "text", Gemma3TextConfig, tokenizer, head_dim=8)
    _, processor = load_parts(folder, **towers)
    [ids] = processor.apply_chat_template([make_prompt(ROW)], tokenize=True)
    assert ids[0] == tokenizer.bos_token_id and ids.count(ids[0]) == 1
    assert processor.end_id == tokenizer.eos_token_id


@pytest.mark.parametrize("name,end", [
    ("qwen", "<|im_end|>"), ("llama", "<|eot_id|>"), ("gemma", "<end_of_turn>"),
    ("mistral", "</s>"), ("phi", "<|end|>"), ("gpt", "<|endoftext|>"), ("thinks", "<|end|>")])
def test_a_reply_ends_as_the_template_ends_a_turn(name, end):
    from affectgpt_r1.chat_templates import end_of_turn
    tokenizer = TOKENIZERS[name]()
    assert end_of_turn(tokenizer, tokenizer.chat_template) == end


def test_a_tokenizer_that_knows_more_than_the_decoder_gets_the_same_rows_each_time(
        towers, tmp_path):
    tokenizer = TOKENIZERS["qwen"]()
    size = len(tokenizer)
    tokenizer.add_tokens(["<|later|>"], special_tokens=True)
    folder = save_decoder(tmp_path / "text", PhiConfig, tokenizer, vocab_size=size)
    (model, processor), (again, _) = (load_parts(folder, **towers) for _ in range(2))
    assert model.source["hash"] == again.source["hash"]   # so that a stage can be loaded
    rows = model.get_input_embeddings().weight
    assert len(rows) == size + 1 + len(PLACEHOLDERS) == len(model.lm_head.bias)
    assert torch.allclose(rows[size:], rows[:size].mean(0).expand(4, -1), atol=1e-6)


@pytest.mark.parametrize("how,words", [
    (dict(torch_dtype=torch.float16), "knows no torch_dtype"),
    (dict(num_frame=4), "knows no num_frame; .*num_frames"),
    (dict(dtype="bfloat17"), "dtype is 'bfloat17'"), (dict(dtype="auto"), "dtype is 'auto'")])
def test_an_unknown_setting_of_parts_is_refused(qwen, towers, how, words):
    with pytest.raises(ValueError, match=words): load_parts(qwen[2], **towers | how)


def test_settings_reach_processor_decoder_and_the_next_stage(qwen, towers, tmp_path):
    model, processor = load_parts(
        qwen[2], **towers | dict(dtype="bfloat16"), num_frames=4, num_segments=3,
        max_subtitle_tokens=5, frames_by="time", segment_seconds=1., attn_implementation="eager")
    assert (processor.num_frames, processor.num_segments) == (4, 3)
    assert (processor.max_subtitle_tokens, processor.segment_seconds) == (5, 1.)
    decoder = model.model.language_model
    assert decoder.dtype == torch.bfloat16 and decoder.config._attn_implementation == "eager"
    adapted = get_peft_model(model, lora_config(model))
    save_stage(adapted, processor, tmp_path)
    again, reader = load_stage(tmp_path)
    assert reader.num_frames == 4 and reader.max_subtitle_tokens == 5
    assert again.get_base_model().model.language_model.config._attn_implementation == "eager"


def test_more_frames_than_a_q_former_has_places_for_are_refused(qwen, towers):
    model, processor = load_parts(qwen[2], **towers, fusion="qformer", qformer_config=dict(
        hidden_size=16, num_attention_heads=2, intermediate_size=16))
    ids = torch.tensor([processor.placeholder_ids])
    with pytest.raises(ValueError, match="33 frames or segments here.*32 positions"):
        model(input_ids=ids, video_features=torch.zeros(1, 33, 16),
              audio_features=torch.zeros(1, 8, 16))


def test_adapters_belong_into_the_language_model(qwen, towers):
    model, _ = load_parts(qwen[2], **towers)
    for names in (["q_proj", "v_proj"], "all-linear"):
        with pytest.raises(ValueError, match="adapters would be in the towers: .*_tower"):
            adapters_for(model, LoraConfig(target_modules=names), True)
    with pytest.warns(UserWarning, match="the fusion is not trained"):
        adapters_for(model, LoraConfig(target_modules=r".*language_model.*_proj"), True)


def test_a_router_is_no_linear_layer():
    class Router(torch.nn.Linear): pass

    layers = torch.nn.ModuleDict(dict(up=torch.nn.Linear(2, 2), router=Router(2, 2)))
    assert linear_names(layers) == ["up"]
    with pytest.raises(ValueError, match="'minimax' takes no cache but one of its own"):
        check_kind(AutoConfig.for_model("minimax"))


def test_the_default_of_several_chat_templates():
    several = dict(default="a", tool_use="b")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    assert default_template(tokenizer) is None
    tokenizer.chat_template = several
    assert default_template(tokenizer) == "a"


def test_adapters_that_could_never_write_the_tags_are_refused(qwen, towers):
    model, _ = load_parts(qwen[2], **towers, tag_tokens=True)
    mine = dict(target_modules=r".*language_model.*\.q_proj", modules_to_save=["fusion"])
    with pytest.raises(ValueError, match="rows of 4 new tags.*trainable_token_indices"):
        adapters_for(model, LoraConfig(**mine), True)
    rows = dict.fromkeys(("embed_tokens", "lm_head"), model.config.tag_ids)
    for config in (LoraConfig(**mine, trainable_token_indices=rows), lora_config(model)):
        assert adapters_for(model, config, True) is config
    assert adapters_for(model, True).trainable_token_indices == rows


def test_a_folder_of_adapters_says_what_loads_it(qwen, tmp_path):
    model, processor, _ = qwen
    adapted = get_peft_model(model, lora_config(model))
    try: save_stage(adapted, processor, tmp_path)
    finally: adapted.unload()
    with pytest.raises(ValueError, match="checkpoints.load_stage"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "phi3", "gpt_neox"])
def test_families_learn_in_16_bits_with_checkpointing_and_know_their_layers(
        towers, tmp_path, name):
    config, tokenizer, more = GRID[name]
    folder = save_decoder(tmp_path / "text", config, tokenizer, **more)
    model, processor = load_parts(folder, **towers | dict(dtype=torch.bfloat16))
    processor.features = one_clip
    assert any(name.endswith(("Block", "Layer")) for name in model._no_split_modules)
    batch = Collator(processor)([ROW])
    plain = model.train()(**batch, use_cache=False).loss
    adapted = get_peft_model(model, lora_config(model))
    model.activation_checkpointing_enable()
    adapted.enable_input_require_grads()
    loss = adapted.train()(**batch, use_cache=False).loss
    loss.backward()
    assert torch.allclose(loss, plain, atol=1e-3)
    grads = {n: p.grad for n, p in adapted.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in grads.values())
