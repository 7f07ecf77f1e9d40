"""An evaluation in inspect with its own mock model, two epochs; prints its metrics as json

    python tests/in_inspect.py '[[["happy"]], [["joyful"]]]' FOLDER_FOR_LOGS
"""
import json
import sys

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model

from affectgpt_r1.harnesses import inspect_scorer

(gold, pred), logs = json.loads(sys.argv[1]), sys.argv[2]


def answer(messages, *_):
    text = f"<answer>{', '.join(pred[int(messages[-1].text)])}</answer>"
    output = ModelOutput.from_content("mockllm/model", text)
    output.usage = ModelUsage()   # else it counts tokens with a file from the network
    return output


samples = [Sample(input=str(i), target=g if i % 2 else ", ".join(g)) for i, g in enumerate(gold)]
task = Task(dataset=samples, scorer=inspect_scorer(), epochs=2)
model = get_model("mockllm/model", custom_outputs=answer)
(log,) = eval(task, model=model, log_dir=logs, display="none")
assert log.status == "success", log.error
print(json.dumps({name: m.value for s in log.results.scores for name, m in s.metrics.items()}))
