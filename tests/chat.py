"""Conversations of the card game said plainly: by the chat template and the slow verifier."""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from gp_virl.envs.card_dialogue import CardTexts
from gp_virl.envs.general_points import LARGEST_NAMED_VALUE
from gp_virl.text.template import chat, encode, render
from gp_virl.types import KEPT_NUMBERS
from tests import oracle

MARK = "Reply{}mark"  # stands for a reply until its tokens are put there


def spliced(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[str], replies: Sequence[Sequence[int]]
) -> list[int]:
    """Tokens of the chat string of these user texts up to where the next reply begins.

    Between them the replies stand as the tokens given, with the end token put where it lacks.
    """
    marks = [MARK.format("abcdefgh"[i]) for i in range(len(replies))]
    contents = [text for pair in zip(asked, [*marks, ""], strict=True) for text in pair][:-1]
    text = render(tokenizer, chat(contents), True)
    first, *rest = encode(tokenizer, re.split("|".join(marks), text) if marks else [text])
    tokens = list(first)
    for reply, after in zip(replies, rest, strict=True):
        ended = len(reply) > 0 and reply[-1] == after[0]
        tokens += [*reply, *after[ended:]]
    return tokens


def feedback(texts: CardTexts, reply: bytes, values: list[int]) -> tuple[str, str]:
    """(outcome, feedback text) of a reply to a hand of these values."""
    found = oracle.judge(reply, values, texts.target)
    numbers = [] if found["outcome"] == "illegal" else oracle.Parser(reply).numbers
    unused, foreign = list(values), []
    for number in numbers[:KEPT_NUMBERS]:
        if number in unused:
            unused.remove(number)
        else:
            foreign.append(number)
    value = found["value"]
    named = value is not None and value.denominator == 1 and 0 <= value <= LARGEST_NAMED_VALUE
    told = texts.feedback_text(
        found["outcome"],
        foreign,
        unused if len(numbers) <= KEPT_NUMBERS else [],
        int(value) if named else -1,
    )
    return found["outcome"], told
