"Emotion-wheel score as a module of the `evaluate` library; the card is in README.md"

import datasets
import evaluate

from affectgpt_r1.harnesses import evaluate_scores

_DESCRIPTION = """Emotion-wheel F of open-vocabulary emotion labels: words are mapped to the sectors
of five emotion wheels, so that synonyms count as the same answer. From 0 to 1, higher is better."""
_INPUTS = """predictions, references: one answer for each clip, as a list of words or as text
("happy, relieved"). level: 1 for sectors, 2 for the finer words. undefined: "zero" or "nan", the F
of a wheel on which nothing is hit."""


class EmotionWheelScore(evaluate.Metric):
    "Compares lists of emotion words"

    def _info(self):
        text = datasets.Value("string")
        kinds = (datasets.Sequence(text), text)
        return evaluate.MetricInfo(
            description=_DESCRIPTION, inputs_description=_INPUTS, citation="arXiv:2410.01495",
            features=[datasets.Features(predictions=kind, references=kind) for kind in kinds],
            reference_urls=["https://arxiv.org/abs/2410.01495"])

    def _compute(self, predictions, references, **how):
        return evaluate_scores(predictions, references, **how)
