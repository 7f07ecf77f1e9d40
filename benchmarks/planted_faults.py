"""Faults for the trainer of a Qwen-Omni, as users of other trainers have reported them. The tests
plant them and see them found; `failure_museum.py` plants them with the guards switched off"""

import torch
from trl import GRPOTrainer

from affectgpt_r1 import omni_model, sampling_checks
from affectgpt_r1.grpo_trainer import HeldOutTrainer
from affectgpt_r1.media_rows import pick_rows


def change_media(change):
    "Let micro-batches of the loss get other media than the answers were sampled with"
    def plant(monkeypatch, processor):
        real = HeldOutTrainer._media_of

        def media_of(self, rows, *args):
            kept = self.media
            if self.batch is not None: self.media = change({**kept}, rows)
            try: return real(self, rows, *args)
            finally: self.media = kept

        monkeypatch.setattr(HeldOutTrainer, "_media_of", media_of)

    return plant


def without_sound(media, rows):
    media["input_features"] = [x if x is None else x * 0 for x in media["input_features"]]
    return media


def swapped(media, rows):
    n = len(media["prompt_of"])
    return pick_rows(media, [*range(1, n), 0])


def one_frame_late(media, rows):
    "Each patch holds two frames: the picture of the second comes first"
    media["pixel_values_videos"] = [
        x if x is None else x.view(len(x), 3, 2, -1).flip(2).flatten(1)
        for x in media["pixel_values_videos"]]
    return media


def lose_the_flag(monkeypatch, processor):
    "Sound inside the video: forgotten where answers are scored"
    real = omni_model._row_facts

    def facts(ids, config):
        videos, sounds, inside = real(ids, config)
        return videos, sounds, inside and not torch.is_grad_enabled()

    monkeypatch.setattr(omni_model, "_row_facts", facts)


def sample_placeholders(monkeypatch, processor):
    "The list of suppressed tokens is empty"
    monkeypatch.setattr(sampling_checks, "_places_of", lambda trainer: PLACES)
    PLACES.clear()
    PLACES.update(zip(processor.placeholder_ids, processor.tokenizer.convert_ids_to_tokens(
        processor.placeholder_ids)))
    monkeypatch.setattr(type(processor), "placeholder_ids", property(lambda self: []))


def sample_one_placeholder(monkeypatch, processor):
    "Suppressed by the settings, and sampled nevertheless"
    place = processor.placeholder_ids[1]
    change_batch(monkeypatch, lambda batch: batch["completion_ids"][:, 0].fill_(place))


def forget_the_template(monkeypatch, processor):
    processor.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def stale(monkeypatch, processor):
    "Log-probabilities of an earlier policy"
    def change(batch):
        batch["old_per_token_logps"] = batch["old_per_token_logps"] - .1
    change_batch(monkeypatch, change)


def wrong_mask(monkeypatch, processor):
    change_batch(monkeypatch, lambda batch: batch["completion_mask"][:, -1:].zero_())


def change_batch(monkeypatch, change):
    "Let trl's batch of answers be changed"
    real = GRPOTrainer._generate_and_score_completions

    def sample(self, inputs):
        batch = real(self, inputs)
        change(batch)
        return batch

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", sample)


PLACES = {}
FAULTS = {   # fault -> how it is planted, settings, what is said
    "sound dropped": (change_media(without_sound), {}, "sampler and the loss disagree"),
    "rows swapped": (change_media(swapped), {}, "sampler and the loss disagree"),
    "flag lost": (lose_the_flag, {}, "sampler and the loss disagree"),
    "frames off by one": (change_media(one_frame_late), {}, "sampler and the loss disagree"),
    "placeholders not suppressed": (sample_placeholders, {}, "could be sampled"),
    "placeholder sampled": (sample_one_placeholder, {}, "the place of a clip"),
    "template missing": (forget_the_template, {}, "does not begin a reply"),
    "stale log-probs": (stale, dict(num_iterations=2), "sampler and the old policy"),
    "wrong mask": (wrong_mask, {}, "the mask of an answer to clip"),
}
THREADS = {   # fault -> where it was reported
    "sound dropped": "ms-swift #6924", "flag lost": "ms-swift #9472",
    "frames off by one": "UniRL #260", "placeholders not suppressed": "trl #3847",
    "placeholder sampled": "trl #3847", "template missing": "CoursIA #11304"}
