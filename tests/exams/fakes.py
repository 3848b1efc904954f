"""A small examinee that really answers: by heart what it learned, else by letter frequencies."""

import math
from collections import Counter

from lamina.core.digest import digest_bytes
from lamina.core.manifests import ExamSpec
from lamina.data.example import Example, Message
from lamina.data.exams import ExamItem, to_jsonl
from lamina.exams.examinee import Likelihood
from lamina.exams.tasks import load

ALPHABET = 256


def user(text):
    return (Message(role="user", content=text),)


def exam_item(question, answer="", **fields):
    """A question; its full example is the question with `answer`."""
    messages = user(question)
    example = Example(messages=(*messages, Message(role="assistant", content=answer)))
    return ExamItem(messages=messages, example=example, **fields)


def exam_of(items, scorer, name="support", layer="support", private=False, max_new_tokens=16):
    data = to_jsonl(items)
    spec = ExamSpec(
        name=f"{name}/{scorer}",
        scorer=scorer,
        items=digest_bytes(data),
        rows=len(items),
        private=private,
        max_new_tokens=max_new_tokens,
    )
    return load(spec, layer, None if private else data)


class Parrot:
    """Knows answers by heart, and a letter unigram model (with add-one smoothing) of its corpus."""

    def __init__(self, by_heart=None, corpus=""):
        self.by_heart = by_heart or {}
        self.letters = Counter(corpus)
        self.asked = 0

    def _nll(self, text):
        total = self.letters.total() + ALPHABET
        return Likelihood(
            -sum(math.log((self.letters[letter] + 1) / total) for letter in text), len(text)
        )

    def answer(self, prompts, max_new_tokens, progress):
        answers = []
        for prompt in prompts:
            self.asked += 1
            known = self.by_heart.get(prompt.messages[-1].content, "I do not know")
            answers.append(known[:max_new_tokens])
            progress(len(answers), len(prompts))
        return answers

    def log_likelihood(self, examples, progress):
        results = []
        for example in examples:
            self.asked += 1
            results.append(self._nll(example.messages[-1].content))
            progress(len(results), len(examples))
        return results

    def choice_scores(self, prompt, choices):
        self.asked += 1
        return [self._nll(choice) for choice in choices]
