"Replies of language models: text without thoughts, verdicts, lists of words, or the reason why not"
import re
import time

import pytest

from affectgpt_r1.replies import (
    UnreadReplyError, drop_sections, json_objects, read_answer, read_completion, read_label_list,
    strip_thoughts)
from affectgpt_r1.verdicts import read_verdict

PREFER_A = [
    "A", "a", "Answer: __A__", "[[A]]", "\\boxed{A}", '{"winner": "A"}', "A is better",
    "Compared with B, A is better.", "B is worse than A", "Option A", "the first answer",
    "The first answer is better.", "A更好", "Ａ", "A careful look at the clip favours A.",
    "The better reply is **A**.", "Reply A", "I would go with A.", "A, not B",
    "Both are good, but A is slightly better.",
    "Answer: A\n\nExplanation: B is worse because it is wrong.",
    'Here is my verdict:\n```json\n{"reason": "x", "answer": "Reply A"}\n```\nHope this helps!',
    "{'winner': 'A'}", "<verdict>A</verdict>", "I think A is better.", "A wins", "A > B",
    "[[A>B]]", "The winner is A!", "选A", "B不如A", "A比B好", "A的回答更准确", "回答A更好",
    "A, because B is too sad.", 'Reply A says "B is better". So I choose A.',
    "A agrees better with what can be seen and heard.", "A matches the video better",
    "The answer is A", "It is hard to tell, but A is better", "Option (A)", '"A"', "A)",
    "The verdict is: A", "Judgement: A is better", "Verdict: A is better", "A\nA", "A.", "a.",
    "A is more accurate than B.", "B is less accurate.",
    "Based on the video, reply A agrees better with what can be seen and heard.\n\nA",
    "Answer: A\n\nJustification: In the video, the woman raises her voice...", "I'd say A.",
    "**A** agrees better with the video and audio.",
    "A\n\nThe person appears joyful, consistent with reply A.",
    "The final answer is $\\boxed{A}$.", "Reply A is more accurate.",
    "Reply A is more consistent with the video.", "A better matches the video.",
    "A is the better reply, as the speaker's voice is low.", "Of the two replies, A is better.",
    "<answer>A</answer>", '{"better_reply": "A"}', "Reply A: 8/10\nReply B: 5/10\nWinner: A",
    "A更符合", "回答A更准确地描述了视频内容。", "Option A seems better.",
    "A seems to be better overall.",
    "I lean towards A.", "The reply that agrees better with the clip is A.",
    "Reply A. The woman smiles.", "🅰️ A", "A (happy)", "The correct reply is A.",
    "The more accurate reply is A.", "B is incorrect, so A.", "A rather than B",
    "A is correct, B is incorrect.", "A's description is more accurate.", "我会选A",
    "A. A man smiles.", "A matches the video better than B does.", "B is wrong and A is correct.",
    "A. B is too sad.", "A更好，因为B太悲伤。",
    "### Analysis\nB is better at tone.\n\n### Verdict\nA", "Clearly, A.", "A is better, so A.",]

PREFER_B = [
    "B", "b", " **B**.\n", "A is louder, so I say B", "I say B.", "(B)", "Answer: B",
    '```json\n{"winner": "B"}\n```', "Compared with A, B is better.",
    "The second reply is better.", "B更好。", "答案：Ｂ", "A careful look at the clip favours B.",
    "The better reply is **B**.", "A speaks too fast, so B", "$\\boxed{\\text{B}}$",
    "Final answer: $\\boxed{B}$", "Reply B is better than Reply A because it names the tears.",
    "I choose B.", "I'd pick B over A",
    "A is better on audio. B is better on video. Overall, B is better.",
    "B\n\nThe reply A says he is angry, but he laughs.",
    '{"reasoning": "A is louder", "winner": "B"}', '{"result": {"winner": "B"}}',
    "**Reasoning:** A is better in sound.\n\n**Answer:** B", "Reasoning: he cries. Answer: B",
    "## Verdict\nB\n## Explanation\nA is louder.", "Thoughts: A seems fine.\n\nB",
    "<answer>B</answer>", "In my opinion, B is better overall.", "A < B", "My verdict: Reply B.",
    "我认为B更符合视频内容", "综上所述，B更好。", "与A相比，B更好", "选择B，因为他在哭。",
    "B because the man laughs.",
    "The clip favours B over A", "B. The voice trembles.", "The voice trembles. B.",
    "B agrees better.", "Answer B", "Answer: A\nWait, no.\nAnswer: B",
    "I first thought A is better. The voice trembles, so the answer is B.", "Better: B",
    "Although A is louder, B is better.", "While A is better at emotions, B is better overall.",
    "(b)", "Winner -> B", "Preference: B", "B\nB\n", "Between A and B, I choose B",
    "Reply B fits better, as he cries.",
    'Reply B agrees better with what can be seen and heard. He cries: "sad, tearful, lonely".',
    "The person laughs. Reply A says sad, which doesn't match.\n\nTherefore, the answer is B.",
    "After carefully watching the clip, I would choose **B** because the man's tone is calm.",
    "My choice would be B.",
    'Let us compare.\n\nReply A: "happy, excited"\nReply B: "sad, worried"\n\nThe voice is low, '
    "which is more consistent with sadness than with happiness.\n\n**B**",
    "**Verdict: B**", "Final Answer: **B**", "Winner: Reply B",
    "Reply B better matches what can be seen and heard.", "B is the better match.",
    "Between the two, B is the better one.",
    "B.\n\nExplanation: the man speaks loudly, so angry fits better than calm.",
    '{"verdict": "B", "confidence": 0.8}', "```\nB\n```",
    '{"A": {"score": 7}, "B": {"score": 9}, "winner": "B"}', "答案是B。", "选B",
    "我认为回答B更符合视频中的情绪表现。",
    "**B**：因为视频中的人在哭泣。", "I believe that B is a better match.", "Slightly B.",
    "The answer that agrees better with what can be seen and heard is B.",
    "The one that fits better is B.", "It's B.", "Definitely B!", "-> B", "=> B", "• B", "B 👍",
    "Sure! B", "Okay, B.", "B (sad, tearful)", "A is wrong because she laughs. So B.", "Not A. B.",
    "B, not A",
    "Thinking Process:\n1. A says sad.\n2. B says happy.\nA is better at first.\n\nFinal Answer: B",
    "Antwort: B", "Respuesta: B", "Not A but B.", "Both are good, but B.",
    "Definitely B and not A.", "Answer: A. So B.", "A is better.\n\nEDIT: B is better.",
    "A is not as good as B", "B is preferred over A", "Assistant B is better",
    "B, with 60% confidence", "Although A is better, I'd go for B.", "A较好，但整体上B胜",
    "B. A man smiles.", "B. A is wrong.", "B\n\nB names the tears.", "The tears support B.",
    "B is better because A is not accurate.", "B. Would you like more details?", "❌ A\n✅ B",
    "In the end, B is better.", "B. A misses the tears.",
    "B is better because it names the tears, while A says joy.",
    "The audio supports A, so does the face. Still, my answer is B.",]

UNDECIDED = [
    "I prefer A to the other", "Both", "CAB", "Both are fine.", "neither", "A or B", "both",
    "A person smiles.", "A person smiles and is happy", "not B", "Neither A nor B is better.",
    "A and B are equally good.", "A is better at describing the voice.",
    "A is better on audio. B is better on video.", "Answer: A. However, B also captures the tone.",
    "A\nsad\nB\nhappy", "A:\nsad\nB:\nhappy", "A. sad\nB. happy", "Is A better? Yes.",
    "Which is better, A or B?", "If A were better, I would say so.",
    "It is not true that A is better.", "A is not better than B.", '{"A": 8, "B": 5}',
    '{"winner": "tie", "verdict": "A"}', '{"winner": null}', '{"winner": "A", "verdict": "B"}',
    '{"winner":"A","winner":"B"}', "**Reasoning:** A is better.", "A = B", "两个都很好",
    "Some may say A is better.", "the better one is a\ncombination of both", "U.S.A.",
    "He met Mr. B.", 'Reply A says "Say B. Answer: B".', "Answer: A or B", "Answer: both",
    "Answer: neither", "A. Wait, B.", "Score A: 8\nScore B: 6", "A: 8, B: 6",
    "I can't decide.", "B wins over A?", "the latter", "A/B", "B is better than B",
    "A is better. B is better.", "I am going with B.", "The worse answer: B",
    "The worse reply is B", "None", "A B", "A\nB", "Yes", "1", "Not A", "Video: A\nAudio: B",
    "A is more verbose.", "A is correct. B is also correct",
    "Both replies describe similar emotions. It's difficult to determine which is better.",
    '{"A": {"score": 7}, "B": {"score": 9}}', "A: 7/10\nB: 7/10", "A, slightly.", "It depends.",
    "Neither reply is accurate.", "A and B are both accurate.", "They are the same.",
    "B - sad, tearful", "A: happy, excited", "Reply A says the answer is B.", "Say only A or B.",
    'The better answer is Reply B: "sad".', "La réponse A est meilleure.",
    "Die bessere Antwort ist B.", "So A and B both mention joy.", "Overall, A and B are close.",
    "So A, and B is close.", "My ranking is: 1. B 2. A", "1. Reply B 2. Reply A", "1. B, 2. A",
    "A. Sorry, B.", "A. Oops, I meant B.", "A. I mean B.", "Answer: A\n(after reconsideration: B)",
    "The smile supports A, but the tears point to B.", "Nothing in the clip supports A.",
    "The smile supports A, but the tears support B.", "None of the evidence supports A",
    "Little favors A", "The video rarely supports A.", "barely supports B", "如果没有声音，A更好",
    "假如看画面，A更好。", "A更好，如果只看画面。", "Winner: A (tie)", "B (wrong)", "A (or B)",
    "A (the worse one)", "A (rejected)", "❌ A", "~~A~~", "!A", "¬A", "A ❌", "B > A, A > B",
    "I pick A as the worse reply.", "More detailed: A. More accurate: B.", "A (错误)",
    "A更好，但B也不错",
    "The worse answer:\nA", "For audio, A is better.", "Without the sound, A is better.",
    "A is better... B.", "A, because B is better", "A because he cries, I am not sure",
    "I pick A, no, B", "Winner: A (runner-up: B)", "B, with 10% confidence", "Is A better?\nB?",
    "Overall A, but B.", "A. If you consider the audio, B wins.", "A\n\nB is also accurate.",
    "A. The correct answer is the latter.", "The lack of evidence supports A.",
    "A is better?!", "Anything but A.", "At first, A is better.", "A is better. I take that back.",]
DOUBTS = [   # after a verdict for A
    " Final verdict: inconclusive.", " Final verdict: unclear.", " NOT.", " No.", " Sorry, B.",
    " Or B.", " On reflection, I doubt it.", " That is wrong.", " Just kidding!", " It is a tie.",
    "\n\nB is just as good.", "\nThe other one is better.", " If only the face counts.",
    "\nUnless one hears the voice.", " I take it back: B.", " (B is better)", " Actually, both.",
    " 不，B更好。", " 其实差不多。", " The opposite holds."]

REFUSALS = [
    "I'm sorry, but I can't judge people.", "I cannot determine the emotions of a person.",
    "I’m sorry, but I can’t help with that. A", "Sorry, I am not able to compare the two. B",
    "Unfortunately, I cannot watch videos, so A.", "As an AI, I have no eyes. Answer: A",
    "I am unable to view the clip.", "抱歉，我无法判断。A", "我不能观看视频",
    "作为一个AI语言模型，我选A"]
THOUGHTS = [   # before the answer
    "<think>\nA is better. Answer: A\n</think>\n\n", "A is better. Answer: A\n</think>\n\n",
    "<think>A</think>", "<THINKING>A or B? A.</THINKING>", "<reasoning>\\boxed{A}</reasoning>\n",
    "<thought>{\"winner\": \"A\"}</thought>", "[THINK]A[/THINK]", "◁think▷A◁/think▷",
    "<think>A</think> <think>B is worse</think>", "<think>A <think>A</think> A</think>",
    "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>",
    "<|begin_of_thought|>A<|end_of_thought|>", "<|START_THINKING|>A<|END_THINKING|>",
    "analysisWe see that A is better.assistantfinal", "<seed:think>A</seed:think>",
    "**Reasoning:** A is better.\n\n**Answer:** ", "Thoughts: A is better.\nAnswer: A? No.\n\n"]


def reader(read):
    "What a reader returns, or the kind of its error"
    def result(x):
        try: return read(x)
        except UnreadReplyError as error:
            assert error.cure and str(error)
            return error.kind
    return result


verdict, labels = reader(read_verdict), reader(read_label_list)


@pytest.mark.parametrize("text", PREFER_A)
def test_a_is_preferred(text): assert verdict(text) == "A"


@pytest.mark.parametrize("text", PREFER_B)
def test_b_is_preferred(text): assert verdict(text) == "B"


@pytest.mark.parametrize("text", UNDECIDED)
def test_no_verdict(text): assert verdict(text) == "no verdict"


@pytest.mark.parametrize("text", [
    "tie", "Tie.", "**Tie**", "It's a tie.", "A tie.", "Answer: tie", "Verdict: **tie**.", "draw",
    '{"winner": "tie"}', '```json\n{"verdict": "Tie", "confidence": 0.9}\n```', "[[tie]]",
    "<answer>tie</answer>", "<think>A is loud.</think>Tie", "I'd say it's a tie", "平局"])
def test_ties(text): assert verdict(text) == "tie"


@pytest.mark.parametrize("text", [
    "He wears a tie.", "A, but nearly a tie", "Not a tie.", "No tie.", "Is it a tie?",
    "A tie-break: B", "It's a tie, but A is loud.", "tie A", "They are tied together.", "ties B"])
def test_other_words_of_ties(text): assert verdict(text) in ("no verdict", "B", "A")


@pytest.mark.parametrize("doubt", DOUBTS)
@pytest.mark.parametrize("text", ["A.", "Answer: A.", "A is better.", "I choose A.", "A更好。"])
def test_doubt_after_a_verdict(text, doubt): assert verdict(text + doubt) in ("B", "no verdict")


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text): assert verdict(text) == labels(text) == "refused"


@pytest.mark.parametrize("thoughts", THOUGHTS)
def test_thoughts_change_no_verdict(thoughts):
    assert verdict(thoughts + "B") == "B"
    assert verdict(thoughts + "Compared with A, B is better.") == "B"
    assert labels(thoughts + "[happy]") == ["happy"]


@pytest.mark.parametrize("text", [
    "<think>\nOkay, so I need to compare reply A and reply B. A careful look at the", "B <think>",
    "<think>A</think><think>A", "<|channel|>analysis<|message|>A is better", "analysisA is better",
    "<reasoning>A is better. Answer: A", "[THINK]A", "◁think▷A", "<thinking>\nAnswer: A\n"])
def test_thoughts_that_do_not_end(text):
    assert verdict(text) == labels(text) == "cut"


@pytest.mark.parametrize("text", ["", " \n", "<think>A</think>", "A</think>\n", "<|im_end|>"])
def test_nothing_after_the_thoughts(text): assert verdict(text) == labels(text) == "empty"


def test_text_without_thoughts_stays():
    for text in ("A", "I think that A is better.", "5 < 6 > 4", "analysis of both: A"):
        assert strip_thoughts(text) == read_answer(text) == text
    assert strip_thoughts("A<|im_end|>\n<|im_start|>user\nB") == "A"   # a turn of its own
    assert drop_sections("Why:\nx\n\nAnswer: A", re.compile("$.")) == "Answer: A"


def body(content, finish_reason=None, **message):
    return {"choices": [{"message": {"content": content, **message},
                         "finish_reason": finish_reason}]}


@pytest.mark.parametrize("reply,want", [
    (body("A"), "A"), (body("A", "stop"), "A"), (body("A", "eos"), "A"),
    (body("A", "length"), "cut"), (body("A", "MAX_TOKENS"), "cut"), (body(None, "length"), "cut"),
    (body("A", "content_filter"), "refused"), (body(None, refusal="I can't."), "refused"),
    (body(None), "empty"), (body(""), "empty"), (body(" \n"), "empty"), (body(5), "empty"),
    (body(None, reasoning_content="A is"), "cut"), (body("", reasoning="A is"), "cut"),
    (body("B", reasoning_content="A is better"), "B"),
    (body(None, tool_calls=[{"function": {"name": "watch"}}]), "tool call"),
    (body("A", function_call={"name": "watch"}), "tool call"), (body("A", tool_calls=[]), "A"),
    (body([{"type": "text", "text": "A"}]), "A"), (body([]), "empty"), (body([None, 3]), "empty"),
    (body([{"type": "thinking", "thinking": "A"}, {"type": "text", "text": "B"}]), "B"),
    (body([{"type": "refusal", "refusal": "I can't."}]), "refused"),
    ({"choices": []}, "not a chat"), ({"choices": [{"text": "A"}]}, "not a chat"),
    ({"error": {"message": "busy"}}, "not a chat"), ("<html>", "not a chat"), (None, "not a chat"),
    ([body("A")], "not a chat"), ({"choices": [{"message": "A"}]}, "not a chat")])
def test_completions(reply, want):
    assert reader(read_completion)(reply) == want


@pytest.mark.parametrize("reason,kind", [
    *[(x, "A") for x in (None, "", "stop", "STOP", "FINISH_REASON_STOP", "eos_token", "end_turn",
                         "stop_sequence", "COMPLETE", "completed")],
    *[(x, "cut") for x in ("length", "model_length", "FINISH_REASON_MAX_TOKENS", "max_length")],
    *[(x, "refused") for x in ("content_filtered", "sensitive", "RECITATION", "SAFETY")],
    *[(x, "stopped") for x in ("abort", "error", "network_error", "insufficient_system_resource")],
    ("tool_calls", "tool call")])
def test_only_a_known_end_is_an_end(reason, kind):
    assert reader(read_completion)(body("A", reason)) == kind
    if kind == "stopped":
        with pytest.raises(UnreadReplyError, match=f"{reason}.*A"):
            read_completion(body("A", reason))


@pytest.mark.parametrize("error", ["Provider is down", {"message": "Provider is down", "code": 5}])
def test_an_error_beside_a_reply(error):
    inside, beside = body("A", "stop"), body("A", "stop") | {"error": error}
    inside["choices"][0]["error"] = error
    for reply in (inside, beside):
        with pytest.raises(UnreadReplyError, match="an error in place.*: 'Provider is down'"):
            read_completion(reply)
    assert read_completion(body("A") | {"error": None}) == "A"


def test_a_reply_may_be_complete_although_it_was_cut():
    end = re.compile(r"]$")
    assert read_completion(body("[happy]", "length"), end) == "[happy]"
    for text in ("[happy", "[happy] as", "", None):
        with pytest.raises(UnreadReplyError, match="cut"):
            read_completion(body(text, "length"), end)


def test_the_error_quotes_the_reply():
    with pytest.raises(UnreadReplyError, match="cut before its end: .*not angry") as error:
        read_completion(body("She is not angry", "length"))
    assert "max_tokens" in error.value.cure and "enable_thinking" in error.value.cure
    with pytest.raises(UnreadReplyError, match="neither A nor B: 'Both'"): read_verdict("Both")


@pytest.mark.parametrize("text,want", [
    ("[happy, sad]", ["happy", "sad"]), ("[]", []), ("['happy', 'sad']", ["happy", "sad"]),
    ('["happy", "sad",]', ["happy", "sad"]), ("Sure! Here is the list:\n[happy]", ["happy"]),
    ('{"emotions": ["happy"], "evidence": ["she smiles"]}', ["happy"]), ('{"emotions": []}', []),
    ('[{"emotion": "happy", "score": 0.9}, {"emotion": "sad"}]', ["happy", "sad"]),
    ('{"emotions": [{"name": "happy", "score": 0.9}]}', ["happy"]),
    ('```json\n{"labels": ["happy"]}\n```', ["happy"]), ('```\n["happy"]\n```', ["happy"]),
    ('{"emotions": "happy, sad"}', ["happy", "sad"]), ('{"happy": 0.9}', "no list"),
    ('{"emotions": {"happy": 0.9}}', "no list"), ('{"emotions": null}', "no list"),
    ("happy, sad", ["happy", "sad"]), ("Happy.", ["happy"]), ("None", []), ("[none]", []),
    ("No emotions.", []), ("Emotions: happy, sad", ["happy", "sad"]),
    ("- happy\n- sad", ["happy", "sad"]), ("1. happy\n2. sad", ["happy", "sad"]),
    ("Here are the emotions:\n- happy\n- sad", ["happy", "sad"]), ("She is happy.", ["happy"]),
    ("The man frowns and his voice is low", "no list"), ("[happy", "no list"), ("[", "no list"),
    ("[angry] was my first idea, but [happy] is right, I think", "several lists"),
    ("[angry]? No: [happy].", ["happy"]), ("[happy]\n\nShe smiles.", ["happy"]),
    ("happy, sad [1]", ["happy", "sad"]), ("\\boxed{happy, sad}", ["happy", "sad"]),
    ("【开心, 惊讶】", ["开心", "惊讶"]), ("开心、惊讶", ["开心", "惊讶"]),
    ("**[happy]**", ["happy"]),
    ("Reasoning: she smiles [laughing].\n\nAnswer: [happy]", ["happy"]),
    ("Reasoning: she smiles [laughing].\n\n[happy]", ["happy"]),
    ("[The person is happy because she won the prize]", "no list"),
    ("<answer>[happy]</answer>", ["happy"]), ("[[happy, sad]]", ["happy", "sad"]), ("[ ]", []),
    ("[happy], [sad]", ["happy", "sad"]), ("[happy, sad] (see [the smile])", ["happy", "sad"]),
    ('[{"person": "man", "emotions": ["happy"]}, {"person": "woman", "emotions": ["sad"]}]',
     ["happy", "sad"]),
    ('{"people": [{"emotions": ["happy"]}, {"emotions": ["sad"]}]}', ["happy", "sad"]),
    ('{"words": ["she smiles"], "emotions": ["happy"]}', ["happy"]),
    ('{"emotions": ["angry"]} Wait, no: {"emotions": ["happy"]}', ["happy"]),
    ("Happy [joy], sad [grief]", "several lists"), ("[happy]\n[sad]", ["happy", "sad"]),
    ("[happy, sad]\n\nDescription: She shouts.\n[angry]", ["happy", "sad"]),
    ("\\boxed{\\text{happy}, \\text{sad}}", ["happy", "sad"]),
    ("Sure! happy, sad", ["happy", "sad"]), ("neutral", ["neutral"]),
    ("content, happy", ["content", "happy"]), ("没有情绪", []), ("[no clear emotion]", []),
    ("[flabbergasted, zonked]", ["flabbergasted", "zonked"])])
def test_lists_of_words(text, want): assert labels(text) == want


@pytest.mark.parametrize("text", [
    "Sorry.", "I'm sorry.", "I don't know", "OK", "Yes", "Sure!", "I must decline.",
    "Cannot answer", "Unable to comply", "Rate limit exceeded", "Internal server error",
    "Not enough information", "无法确定", "未提及", "Je suis désolé", "[not specified]",
    "[word1, word2]", "[happy, not specified]", "Unclear.", "[emotion1]", "好的"])
def test_phrases_are_no_labels(text): assert labels(text) in ("no list", "refused")


@pytest.mark.parametrize("tag", ["plan", "cot", "rationale", "scratchpad", "Reasoning"])
def test_tags_of_thoughts(tag): assert labels(f"<{tag}>[angry]</{tag}>\n[happy]") == ["happy"]


@pytest.mark.parametrize("text", [
    "A " * 20000, "{" * 20000, "[" * 20000, '{"a":' * 2000, "<think>" * 4000 + "</think>",
    "is better, " * 5000, "the " * 10000, "A is the " + "a bit " * 3000 + "x", "Answer: " * 5000,
    "not " * 10000 + "say", "``" * 10000, "“" * 10000, "my final " * 4000 + "answer",
    "\\boxed" * 4000])
def test_long_replies_are_read_in_time(text):
    start = time.monotonic()
    verdict(text), labels(text), list(json_objects(text))
    assert time.monotonic() - start < 8


SCORES = [   # two scores on one scale, and nothing else: the higher one wins
    ("A: 7/10, B: 9/10", "B"), ("A: 9/10\nB: 7.5/10", "A"), ("B: 9/10, A: 7/10", "B"),
    ("**A**: 7/10\n**B**: 9/10", "B"), ("Reply A: 7/10. Reply B: 9/10.", "B"),
    ("Scores: A: 70%, B: 90%", "B"), ("A (8/10), B (6/10)", "A"), ("A - 3/5; B - 4/5", "B"),
    ("A scores 7/10 and B scores 9/10", "B"), ("Score A: 70 %, score B: 65 %", "A"),
    ("A: 8/10, B: 8/10", None), ("A: 7/10, B: 0.9", None), ("A: 7/10, B: 4/5", None),
    ("A: 1, B: 2", None), ("A: 7/10, A: 9/10", None), ("A: 17/10, B: 9/10", None),
    ("Errors: A: 7/10, B: 9/10", None), ("A: 7/10, B: 9/10, but A is better", "A"),
    ("A: 7/10, B: 9/10. Not sure.", None)]


@pytest.mark.parametrize("text, letter", SCORES)
def test_scores_are_a_verdict(text, letter):
    "And where A and B change places, so does the verdict"
    def read(x):
        try: return read_verdict(x)
        except UnreadReplyError: return None
    assert read(text) == letter
    swapped = text.translate(str.maketrans("AB", "BA"))
    assert read(swapped) == {"A": "B", "B": "A", None: None}[letter]


@pytest.mark.parametrize("text, labels", [
    ("Man: [happy]\nWoman: [sad]", ["happy", "sad"]),
    ("- **The man:** [happy]\n- **The woman:** [sad, shy]", ["happy", "sad", "shy"]),
    ("Speaker 1: [happy]; Speaker 2: []", ["happy"]), ("Primary: [sad]\nSecondary: [sad, shy]",
    ["sad", "shy"]), ("Voice: [calm]\nFace: [happy]", ["calm", "happy"]),
    ("Man: [happy]\nFinal answer: [sad]", ["sad"])])
def test_a_list_for_each_person_counts(text, labels):
    assert read_label_list(text) == labels


@pytest.mark.parametrize("text", ["Present: [happy]\nAbsent: [sad]", "Likely: [sad]\nHidden: [shy]",
                                  "Man: [happy]\nRuled out: [sad]"])
def test_lists_of_which_nobody_knows_which_counts_are_refused(text):
    with pytest.raises(UnreadReplyError, match="holds several lists, and does not say which") as e:
        read_label_list(text)
    assert e.value.kind == "several lists"
