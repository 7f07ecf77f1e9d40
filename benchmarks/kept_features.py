"""What does it save to encode each clip of a GRPO step once?

    python benchmarks/kept_features.py --out nbs/results/kept_features.json

Eight answers to each of four clips, in the loss of a thinker with a vision encoder of 8 layers and
width 256. Its features are computed for each row, as transformers does, and by `KeptFeatures`,
which takes a digest of each row: in the first pass, where four clips are new, and in the second,
where none is. Then a digest of one clip of the size that a thinker of 7 billion weights gets.
Seconds of one core, the least of three times.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

from affectgpt_r1.kept_features import content_digest
from affectgpt_r1.omni import make_tiny_omni

CLIPS, ANSWERS = 4, 8
WIDER = dict(depth=8, hidden_size=256, intermediate_size=688, num_heads=8,
             fullatt_block_indexes=[3, 7], window_size=112)


def seconds(function, *args):
    "Processor time of a call, the least of three"
    def once():
        start = time.process_time()
        function(*args)
        return time.process_time() - start

    return min(once() for _ in range(3))


def a_thinker():
    "A tiny thinker with a wider vision encoder, and the patches of some clips"
    model, processor = make_tiny_omni(["happy"], num_frames=8, pixels=(224**2, 224**2))
    config = model.config
    for name, value in WIDER.items(): setattr(config.vision_config, name, value)
    made = [processor.patches(torch.randint(0, 256, (8, 224, 224, 3), dtype=torch.uint8).numpy())
            for _ in range(CLIPS)]
    return type(model)(config).eval(), *zip(*made)


@torch.no_grad()
def main():
    "Measure, print and write"
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", type=Path, required=True)
    args = ap.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, patches, grids = a_thinker()
    rows = torch.cat(patches * ANSWERS), torch.stack(grids * ANSWERS)
    inner = model.model
    plain = next(c for c in type(inner).__mro__ if c.__name__ == "Qwen2_5OmniThinkerModel")

    def anew():
        inner.kept_videos.found.clear()
        inner.get_video_features(*rows)

    large = torch.randn(3072, 1176)   # 8 frames of 448 x 336 pixels
    found = dict(
        rows=CLIPS * ANSWERS, clips=CLIPS, mb_per_clip=patches[0].nbytes / 1e6,
        every_row=seconds(plain.get_video_features, inner, *rows), first_pass=seconds(anew),
        next_pass=seconds(inner.get_video_features, *rows),
        large_mb=large.nbytes / 1e6, large_digest=seconds(content_digest, large))
    print(json.dumps(found, indent=1))
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__": main()
