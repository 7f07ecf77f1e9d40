"""What the picture of the pipeline shows: one clip of the toy corpus, four answers of the toy model
to it, their F and advantage, and what one step of the optimiser does to them

python -m tools.picture
"""

import copy

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from affectgpt_r1.demo import ToyRun, cold_started_toy
from affectgpt_r1.grpo import group_advantages, grpo_loss, token_logps
from affectgpt_r1.inference import generate_replies, generation_config
from affectgpt_r1.labels import parse_response
from affectgpt_r1.media import read_clip
from affectgpt_r1.metrics import ew_rewards
from affectgpt_r1.modeling import MEDIA_KEYS
from affectgpt_r1.processing import make_prompt
from affectgpt_r1.sounds import read_waveform
from tools.notebooks import ROOT

KEPT = ROOT / "affectgpt_r1/picture_data/group.npz"
CLIP = 8  # row of the human split
SEED = 0  # of the four samples
GROUP = 4
RATE = 1e-4  # of the one step


def clip_parts(row):
    "The clip itself: every other of its eight frames, the outline of its sound, its subtitle"
    frames = read_clip(row).pictures[::2]
    wave = read_waveform(row["audio"])
    windows = wave[: len(wave) // 120 * 120].reshape(120, -1)
    outline = np.stack([windows.min(1), windows.max(1)])
    return dict(
        frames=frames,
        outline=outline.astype(np.float16),
        subtitle=np.array(row["subtitle"]),
        gold=np.array(row["labels"]),
    )


def features(toy, inputs):
    "What the encoders say of each frame and each audio segment, and the three soft tokens"
    video, audio = inputs["video_features"][:1], inputs["audio_features"][:1]
    with torch.no_grad():
        tokens = toy.model.model.fusion(video, audio)
    return {
        name: x[0].numpy().astype(np.float16)
        for name, x in dict(video=video, audio=audio, tokens=tokens).items()
    }


def sampled_group(toy, row):
    "Four answers to a clip, their labels, F and advantages"
    torch.manual_seed(SEED)
    config = generation_config(toy.model, toy.processor, do_sample=True, top_k=0, top_p=1.0)
    replies = generate_replies(toy.model, toy.processor, [make_prompt(row)] * GROUP, config)
    answers = [parse_response(reply.text, "answer").labels for reply in replies]
    f = torch.tensor(ew_rewards([row["labels"]] * GROUP, answers))
    return replies, answers, f, group_advantages(f, GROUP)


def changes(toy, inputs, replies, advantages):
    "How much one step moves the log-probability of each answer; the model is left as it was"
    policy = copy.deepcopy(toy.model).train()
    written = [torch.tensor(reply.ids) for reply in replies]
    mask = pad_sequence([torch.ones_like(ids) for ids in written], batch_first=True)
    ids = torch.cat([inputs["input_ids"], pad_sequence(written, batch_first=True)], 1)
    seen = torch.cat([inputs["attention_mask"], mask], 1)
    media = {key: inputs[key] for key in MEDIA_KEYS if key in inputs}
    logps = token_logps(policy, ids, seen, mask.shape[1], **media)
    grpo_loss(logps, logps.detach(), advantages.float(), mask).backward()
    trained = [p for p in policy.parameters() if p.requires_grad]
    torch.optim.AdamW(trained, RATE).step()
    with torch.no_grad():
        after = token_logps(policy, ids, seen, mask.shape[1], **media)
    return ((after - logps.detach()) * mask).sum(1)


def record(
    toy: ToyRun,  # From `cold_started_toy`
    row: dict,  # A clip of its human split
) -> dict[str, np.ndarray]:
    "All values of the picture, by name"
    inputs = toy.processor.apply_chat_template(
        [make_prompt(row)] * GROUP,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
    )
    replies, answers, f, advantages = sampled_group(toy, row)
    _, question = make_prompt(row)[0]["content"]
    prompt = f"<multi><audio><video> Subtitle: {row['subtitle']} {question['text']}"
    return (
        clip_parts(row)
        | features(toy, inputs)
        | dict(
            prompt=np.array(prompt),
            answers=np.array([", ".join(a) for a in answers]),
            f=f.numpy(),
            advantages=advantages.numpy().round(6) + 0.0,  # no minus before a zero
            changes=changes(toy, inputs, replies, advantages).numpy().round(6),
        )
    )


if __name__ == "__main__":
    toy = cold_started_toy()
    np.savez_compressed(KEPT, **record(toy, toy.human[CLIP]))
    print(f"{KEPT}: {KEPT.stat().st_size:,} bytes")
