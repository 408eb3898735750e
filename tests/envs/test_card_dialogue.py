import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from gp_virl.envs import cards, formulas
from gp_virl.envs.card_dialogue import VARIANTS, CardDialogue, CardTexts
from gp_virl.envs.general_points import OUTCOMES
from gp_virl.text import template
from gp_virl.text.prompts import BRIEF, FULL, Wording
from gp_virl.text.template import TemplateError, encode, render
from gp_virl.text.tokenizer import tiny
from gp_virl.text.wordings import from_fields
from gp_virl.types import Context
from tests.text.bpe import llama_like, llama_vision_like

FACE_TEN, FACE_RANK = cards.face_rule("face_ten"), cards.face_rule("face_rank")
TINY = tiny()
TEXTS = CardTexts(BRIEF, FACE_TEN, 24)
FULL_TEXTS = CardTexts(FULL, FACE_RANK, 24)

compose = jax.jit(
    lambda pieces, ranks, size: template.compose(pieces.bank, pieces.prompt(ranks), size),
    static_argnums=2,
)


@jax.jit
def told(context: Context, pieces, outcome, foreign, unused, value, ended) -> Context:
    return template.append(
        context, pieces.bank, pieces.feedback(outcome, foreign, unused, value, ended)
    )


def drawn_feedback(draw: random.Random) -> tuple[str, list[int], list[int], int]:
    outcome = draw.choice(OUTCOMES)
    foreign, unused, value = [], [], -1
    if outcome == "wrong_numbers":
        foreign = [draw.choice((draw.randint(0, 30), 9999)) for _ in range(draw.randint(0, 8))]
        unused = [draw.randint(1, 13) for _ in range(draw.randint(0 if foreign else 1, 4))]
    if outcome == "wrong_value":
        value = draw.choice((-1, draw.randint(0, 30), draw.randint(0, 999)))
    return outcome, foreign, unused, value


def scattered(numbers: list[int], size: int, draw: random.Random) -> jnp.ndarray:
    """The numbers in order, with -1 anywhere between them."""
    places = sorted(draw.sample(range(size), len(numbers)))
    row = np.full(size, -1, np.int32)
    row[places] = numbers
    return jnp.array(row)


TOKENIZERS = {
    "tiny": (TINY, False),
    "llama_like": (llama_like(), False),
    "tiny, pictures": (TINY, True),
    "llama_vision_like, pictures": (llama_vision_like(), True),
}


@pytest.mark.parametrize("wording", [BRIEF, FULL], ids=["brief", "full"])
@pytest.mark.parametrize(("tokenizer", "pictured"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_composed_conversations_are_the_chat_templates(
    tokenizer: PreTrainedTokenizerBase, pictured: bool, wording
) -> None:
    dialogue = CardDialogue.build(tokenizer, wording, FACE_RANK, 24, pictured)
    draw = random.Random(1)
    for _ in range(25):
        ranks = [draw.randrange(13) for _ in range(4)]
        symbols = [cards.SYMBOLS[rank] for rank in ranks]
        messages = [{"role": "user", "content": dialogue.prompt_text(symbols)}]
        size = dialogue.context_limit(80, 5)
        context = compose(dialogue.pieces, jnp.array(ranks, jnp.int32), size)
        assert context.length <= dialogue.prompt_limit
        for _ in range(draw.randint(0, 4)):
            reply = draw.choice(("7", "(10-4)*4 = K", '{"formula": "1+2=24"}', "no idea, sorry"))
            tokens = encode(tokenizer, [reply])[0] + [dialogue.eot]
            ended = draw.random() < 0.7  # else the reply was cut before its end token
            context = with_reply(context, tokens[: None if ended else -1])
            outcome, foreign, unused, value = drawn_feedback(draw)
            before = int(context.length)
            context = told(
                context,
                dialogue.pieces,
                jnp.int32(OUTCOMES.index(outcome)),
                scattered(foreign, 8, draw),
                scattered(unused, 4, draw),
                jnp.int32(value),
                jnp.bool_(ended),
            )
            assert int(context.length) - before <= dialogue.feedback_limit
            text = dialogue.feedback_text(outcome, foreign, unused, value)
            messages.append({"role": "assistant", "content": reply})
            messages.append({"role": "user", "content": text})
        whole = encode(tokenizer, [render(tokenizer, messages, True)])[0]
        assert context.tokens[: int(context.length)].tolist() == whole
        image = tokenizer.get_vocab().get("<|image|>")
        assert whole.count(image) == pictured and dialogue.image_token == (
            image if pictured else None
        )


def with_reply(context: Context, tokens: list[int]) -> Context:
    length = int(context.length)
    held = np.array(context.tokens)
    held[length : length + len(tokens)] = tokens
    return Context(jnp.array(held), jnp.int32(length + len(tokens)))


def test_brief_is_short_enough_for_tiny_models() -> None:
    for rule in (FACE_TEN, FACE_RANK):
        dialogue = CardDialogue.build(TINY, BRIEF, rule, 24)
        assert dialogue.feedback_limit - 1 <= 12  # without the end token of a cut reply
        table = formulas.solve(rule, 24)
        ranks = cards.RANK_MULTISETS[table.solvable]
        turns = []
        for hand in ranks[::10]:
            symbols = [cards.SYMBOLS[rank] for rank in hand]
            values = [rule.values[rank] for rank in hand]
            reply = dialogue.expert_reply(symbols, values, table.solutions(hand)[-1], 24)
            contents = [dialogue.prompt_text(symbols), reply]
            messages = [
                {"role": r, "content": c}
                for r, c in zip(("user", "assistant"), contents, strict=True)
            ]
            turns.append(render(TINY, messages, False))
        lengths = [len(tokens) for tokens in encode(TINY, turns)]
        assert max(lengths) <= 66 and np.mean(lengths) < 62


def test_ids_of_the_tiny_tokenizer() -> None:
    dialogue = CardDialogue.build(TINY, BRIEF, FACE_TEN, 24)
    name = TINY.convert_ids_to_tokens
    assert name(dialogue.eot) == "<|eot_id|>" == name(dialogue.stops[0])
    assert set(name(list(dialogue.stops))) == {"<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"}
    assert dialogue.context_limit(40, 1) == dialogue.prompt_limit + 40
    assert (
        dialogue.context_limit(40, 3) == dialogue.prompt_limit + 120 + 2 * dialogue.feedback_limit
    )


@pytest.mark.parametrize("wording", [BRIEF, FULL], ids=["brief", "full"])
def test_beside_a_picture_every_hand_has_the_same_prompt(wording) -> None:
    dialogue = CardDialogue.build(TINY, wording, FACE_TEN, 24, pictured=True)
    ranks = jnp.array([[0, 1, 2, 3], [12, 12, 5, 9]], jnp.int32)
    first, second = (compose(dialogue.pieces, hand, 512) for hand in ranks)
    assert (first.tokens == second.tokens).all() and first.length == dialogue.prompt_limit
    told = "J=10, Q=10, K=10: make 24" if wording is BRIEF else "J counts as 10, Q counts as 10"
    assert told in TINY.decode(first.tokens[: int(first.length)])
    assert dialogue.prompt_text(["A", "2", "3", "4"]) == dialogue.prompt_text(["K"] * 4)
    assert dialogue.prompt_text([]).startswith("<|image|>")


def test_pictures_need_a_vision_models_tokenizer() -> None:
    with pytest.raises(TemplateError, match=r"<\|image\|> as .*, not as one special token"):
        CardDialogue.build(llama_like(), BRIEF, FACE_TEN, 24, pictured=True)


def test_two_rules_share_a_compiled_program() -> None:
    shapes = [
        [leaf.shape for leaf in jax.tree.leaves(CardDialogue.build(TINY, BRIEF, rule, 24).pieces)]
        for rule in (FACE_TEN, FACE_RANK)
    ]
    assert shapes[0] == shapes[1]


def test_works_in_lanes() -> None:
    pieces = CardDialogue.build(TINY, BRIEF, FACE_TEN, 24).pieces
    ranks = jax.random.randint(jax.random.key(0), (5, 4), 0, 13)
    lanes = jax.vmap(lambda r: template.compose(pieces.bank, pieces.prompt(r), 40))(ranks)
    for lane in range(5):
        text = TINY.decode(lanes.tokens[lane, : lanes.length[lane]])
        assert TEXTS.prompt_text([cards.SYMBOLS[r] for r in ranks[lane]]) in text


@pytest.mark.parametrize(
    ("given", "brief", "full"),
    [
        (("solved", [], [], -1), "Solved", "equals 24."),
        (("wrong_value", [], [], 25), "Value:25", "equals 25, not 24."),
        (("wrong_value", [], [], 250), "Value:large", "equals 250, not 24."),
        (("wrong_value", [], [], -1), "Value:other", "does not equal 24."),
        (("wrong_numbers", [7, 1000], [], -1), "Foreign:7", "give you 7, a number above 999."),
        (("wrong_numbers", [], [3, 4], -1), "Unused:3", "not used 3, 4."),
        (("wrong_numbers", [7], [3], -1), "Foreign:7", "give you 7, and you have not used 3."),
        (("illegal", [], [], -1), "Illegal", "balanced parentheses only."),
        (("unrecognized", [], [], -1), "Unrecognized", "not the cards you were dealt."),
    ],
)
def test_feedback_names_what_was_wrong(given: tuple, brief: str, full: str) -> None:
    assert TEXTS.feedback_text(*given) == brief
    assert full in FULL_TEXTS.feedback_text(*given)


def test_every_outcome_has_its_texts() -> None:
    names = {name for name in OUTCOMES if name not in ("wrong_value", "wrong_numbers")}
    assert names < set(VARIANTS) and len(VARIANTS) == 8
    with pytest.raises(KeyError):
        TEXTS.feedback_text("perfect", [], [], -1)


def test_prompt_and_expert_reply() -> None:
    symbols = ["K", "4", "10", "A"]
    assert TEXTS.prompt_text(symbols) == "K 4 10 A with J=10, Q=10, K=10: make 24"
    assert "Your cards: K, 4, 10, A." in FULL_TEXTS.prompt_text(symbols)
    assert "J counts as 11, Q counts as 12 and K counts as 13." in FULL_TEXTS.prompt_text(symbols)
    assert TEXTS.expert_reply(symbols, [10, 4, 10, 1], "10+4+10*1", 24) == (
        '{"cards": ["K", "4", "10", "A"], "number": [10, 4, 10, 1], "formula": "10+4+10*1=24"}'
    )


def test_a_wording_that_merges_with_its_slots_is_refused() -> None:
    fields = {name: getattr(BRIEF, name) for name in BRIEF.__dataclass_fields__}
    wording = from_fields({**fields, "wrong_value": "Value 1{value}"}, "mine", Wording)
    with pytest.raises(TemplateError, match="feedback 'wrong_value'"):
        CardDialogue.build(TINY, wording, FACE_TEN, 24)
