"""Expert dialogues of GeneralPoints: a TFDS builder, deterministic from its config.

An example is a conversation that ends with a correct reply. With `suboptimal` > 0 some have failed
tries and the verifier's feedback before it (paper, Fig. 15). The loss is on the last reply only:
the model learns to answer after errors, not to make them. With `modality` "image" the hand is a
picture, kept as PNG, and the prompt doesn't name the cards.

    builder = GpSft(config=GpSftConfig(rules={"face_ten": 1.0}), data_dir=..., file_format=FORMAT)
    builder.download_and_prepare()
    source = builder.source()
"""

import dataclasses
import functools
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Int

from gp_virl.data import expert, pictures
from gp_virl.envs import cards, formulas
from gp_virl.envs.card_dialogue import CardTexts
from gp_virl.envs.card_images import SMALLEST
from gp_virl.envs.general_points import OUTCOMES, Fault, judge
from gp_virl.text import replies
from gp_virl.text.prompts import PICTURED, load_wording

FORMAT = expert.FORMAT
JUDGED_TOGETHER = 4096  # replies in one call of the verifier
KINDS = ("value", "numbers", "illegal")  # what a failed try is meant to get wrong
MODALITIES = ("text", "image")
PICTURE_FIELDS = ("modality", "image_size", "jitter_shift", "jitter_scale")  # say nothing of texts


@dataclasses.dataclass(eq=False, kw_only=True)
class GpSftConfig(tfds.core.BuilderConfig):
    """What the dialogues are about. The name is made of the fields; leave it out."""

    name: str = ""
    rules: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"face_ten": 1.0})
    require_face: Sequence[str] = ()  # rules whose hands have at least one of J, Q, K
    target: int = 24
    hands: str = "seen"  # all | seen | held_out
    held_out: float = 0.1  # share of the 1,820 rank multisets
    held_out_seed: int = 0  # the environment's seed, which chooses the held-out ones
    seed: int = 0
    examples: int = 50_000
    max_solutions: int = 1  # of each hand, those with the fewest parentheses first
    suboptimal: float = 0.0  # share of dialogues with failed tries
    max_errors: int = 1  # failed tries of such a dialogue: 1 to this, evenly
    wording: str = "brief"
    modality: str = "text"  # text: the prompt names the cards | image: a picture shows them
    suits: str = "all"  # all | black | red
    image_size: int = 224  # pixels of a side
    jitter_shift: float = 0.0  # of each card, as in `card_images.jittered`
    jitter_scale: float = 0.0

    def __post_init__(self):
        expert.check(self, (
            ("rules", expert.are_shares(self.rules), "shares that sum to 1"),
            ("require_face", set(self.require_face) <= set(self.rules), "names of `rules`"),
            ("hands", self.hands in cards.HAND_CHOICES, ", ".join(cards.HAND_CHOICES)),
            ("held_out", 0 <= self.held_out < 1, "0 <= held_out < 1"),
            ("target", self.target >= 1, ">= 1"),
            ("examples", self.examples >= 1, ">= 1"),
            ("max_solutions", self.max_solutions >= 1, ">= 1"),
            ("suboptimal", 0 <= self.suboptimal <= 1, "0 to 1"),
            ("max_errors", self.max_errors >= 1, ">= 1"),
            ("modality", self.modality in MODALITIES, ", ".join(MODALITIES)),
            ("suits", self.suits in cards.SUIT_CHOICES, ", ".join(cards.SUIT_CHOICES)),
            ("image_size", self.image_size >= SMALLEST, f">= {SMALLEST}"),
            ("jitter_shift", self.jitter_shift >= 0, ">= 0"),
            ("jitter_scale", 0 <= self.jitter_scale < 1, "0 <= jitter_scale < 1"),
        ))  # fmt: skip
        for rule in self.rules:
            cards.face_rule(rule)
        self.name = self.name or self._digest()

    @property
    def pictured(self) -> bool:
        """True where examples have a picture."""
        return self.modality == "image"

    def _digest(self) -> str:
        """A name that differs where the examples do.

        What says nothing about texts is left out of theirs, so that they keep their names.
        """
        fields = expert.own_fields(self) | {
            "rules": [(cards.face_rule(n).values, share) for n, share in self.rules.items()],
            "require_face": sorted(self.require_face),
            "wording": dataclasses.asdict(load_wording(self.wording)),
        }
        if not self.pictured:
            del fields["wording"][PICTURED]
            silent = (*PICTURE_FIELDS, *(["suits"] if self.suits == "all" else []))
            fields = {name: value for name, value in fields.items() if name not in silent}
        return expert.digest_name(self.rules, fields)


class GpSft(expert.ExpertDialogues):
    """GeneralPoints dialogues."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "rule": tfds.features.Text(),
            "ranks": tfds.features.Tensor(shape=(4,), dtype=np.int32),
            "held_out": np.bool_,
            "errors": np.int32,
        }
        if self.builder_config.pictured:
            features["suits"] = tfds.features.Tensor(shape=(4,), dtype=np.int32)
            features["image"] = expert.picture_feature(self.builder_config.image_size)
        about = "Expert dialogues of the card game GeneralPoints, from an exact solver."
        return self._described(about, features)

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return enumerate(dialogues(self.builder_config))


def dialogues(config: GpSftConfig) -> Iterator[dict[str, Any]]:
    """The examples of a config, in order, with the fields of `GpSft`'s features."""
    names = list(config.rules)
    words, seen = load_wording(config.wording), config.pictured
    texts = [
        CardTexts(words, cards.face_rule(name), config.target, pictured=seen) for name in names
    ]
    held_out = cards.held_out_multisets(config.held_out, config.held_out_seed)
    rules, hands, chosen = _drawn(config, held_out)
    ranks, suits = hands // len(cards.SUITS), hands % len(cards.SUITS)
    kept = held_out[cards.multiset_index(ranks)]
    tries = failed_tries(config, texts, rules, ranks, chosen)
    shown = _pictures(config, ranks, suits) if seen else itertools.repeat(b"")
    for i, picture in zip(range(config.examples), shown, strict=False):
        said = texts[rules[i]]
        example = {
            "contents": [
                said.prompt_text([cards.SYMBOLS[rank] for rank in ranks[i]]),
                *(text for pair in tries[i] for text in pair),
                _reply(said, ranks[i], chosen[i]),
            ],
            "rule": names[rules[i]],
            "ranks": ranks[i],
            "held_out": kept[i],
            "errors": len(tries[i]),
        }
        yield example | ({"suits": suits[i], "image": picture} if seen else {})


def _drawn(
    config: GpSftConfig, held_out: Bool[np.ndarray, "1820"]
) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "N 4"], list[str]]:
    """The number of each example's rule, its cards, and the formula of its last reply."""
    draws = np.random.default_rng(config.seed)
    rules = draws.choice(len(config.rules), config.examples, p=list(config.rules.values()))
    hands = np.zeros((config.examples, 4), np.int32)
    which = draws.random(config.examples)  # of the hand's solutions
    solutions = []
    for number, name in enumerate(config.rules):
        rows = np.flatnonzero(rules == number)
        table = formulas.solve(cards.face_rule(name), config.target)
        known = cards.admissible_hands(_dealt(config, table, name, held_out), config.suits)
        if not len(known):
            raise ValueError(
                f"no hand of rule {name!r} reaches {config.target} with hands={config.hands!r}, "
                f"held_out={config.held_out}, suits={config.suits!r}; choose a target that some "
                "hand reaches"
            )
        drawn = known[draws.integers(0, len(known), len(rows))]
        hands[rows] = draws.permuted(drawn, axis=1)
        solutions.append(functools.cache(_solutions_of(table, config.max_solutions)))
    chosen = []
    index = cards.multiset_index(hands // len(cards.SUITS))
    for rule, multiset, share in zip(rules, index, which, strict=True):
        known = solutions[rule](multiset)
        chosen.append(known[int(share * len(known))])
    return rules, hands, chosen


def _pictures(
    config: GpSftConfig, ranks: Int[np.ndarray, "N 4"], suits: Int[np.ndarray, "N 4"]
) -> Iterator[bytes]:
    """Each hand's picture as PNG."""
    jitter = (config.jitter_shift, config.jitter_scale)
    return pictures.of_hands(config.image_size, config.seed, ranks, suits, *jitter)


def _dealt(
    config: GpSftConfig,
    table: formulas.SolutionTable,
    rule: str,
    held_out: Bool[np.ndarray, "1820"],
) -> Bool[np.ndarray, "1820"]:
    """True for the rank multisets of a rule's dialogues."""
    dealt = table.solvable & (cards.with_face() if rule in config.require_face else True)
    return dealt & {"all": True, "seen": ~held_out, "held_out": held_out}[config.hands]


def _solutions_of(table: formulas.SolutionTable, most: int):
    return lambda multiset: table.solutions(cards.RANK_MULTISETS[multiset])[:most]


def failed_tries(
    config: GpSftConfig,
    texts: Sequence[CardTexts],
    rules: Int[np.ndarray, "N"],
    ranks: Int[np.ndarray, "N 4"],
    chosen: Sequence[str],
) -> list[list[tuple[str, str]]]:
    """(reply, feedback) of each dialogue's failed tries; none for most.

    The tries are spoilt solutions; the environment's own verifier judges them, so that the
    feedback is what it would say, and those that happen to be right are left out.
    """
    tries: list[list[tuple[str, str]]] = [[] for _ in chosen]
    draw = random.Random(config.seed)
    owners = [
        i
        for i in range(len(chosen))
        if draw.random() < config.suboptimal
        for _ in range(draw.randint(1, config.max_errors))
    ]
    values = np.array([text.rule.values for text in texts], np.int32)[rules[:, None], ranks]
    said = []
    for i in owners:
        formula = spoilt(chosen[i], draw.choice(KINDS), draw)
        said.append(_reply(texts[rules[i]], ranks[i], formula))
    for i, reply, (outcome, *fault) in zip(
        owners, said, judged(said, values[owners], config.target), strict=True
    ):
        if outcome != "solved":
            tries[i].append((reply, texts[rules[i]].feedback_text(outcome, *fault)))
    return tries


def _reply(texts: CardTexts, ranks: Int[np.ndarray, "4"], formula: str) -> str:
    symbols = [cards.SYMBOLS[rank] for rank in ranks]
    values = [texts.rule.values[rank] for rank in ranks]
    return texts.expert_reply(symbols, values, formula, texts.target)


def spoilt(formula: str, kind: str, draw: random.Random) -> str:
    """A formula with one thing wrong.

    'value' keeps the numbers but mostly misses the target, 'numbers' uses others than the
    hand's, 'illegal' is no arithmetic expression.
    """
    parts = re.findall(r"\d+|.", formula)
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    operators = [i for i, part in enumerate(parts) if part in "+-*/"]
    a, b = draw.sample(numbers, 2)
    sign = draw.choice(operators)
    if kind == "value":
        parts[a], parts[b] = parts[b], parts[a]
        parts[sign] = draw.choice([other for other in "+-*/" if other != parts[sign]])
    elif kind == "numbers":
        other = draw.choice([str(n) for n in range(1, 14) if str(n) != parts[a]])
        pair = draw.choice([i for i in numbers if i + 2 in numbers])  # x and y of x+y
        first, width, instead = draw.choice(
            (
                (a, 1, [other]),  # a number of no card
                (a, 1, [parts[b]]),  # one card twice
                (a, 1, [parts[a], "+", other]),  # five numbers
                (pair, 3, [parts[pair]]),  # three numbers
            )
        )
        parts[first : first + width] = instead
    else:
        where, what = draw.choice(((a, "("), (a, "-"), (a, "x"), (sign, parts[sign]), (0, ")")))
        parts.insert(where, what)
    return "".join(parts)


def judged(
    said: Sequence[str], values: Int[np.ndarray, "M 4"], target: int
) -> Iterator[tuple[str, list[int], list[int], int]]:
    """(outcome, foreign, unused, value) of each reply, by the environment's verifier."""
    encoded = [text.encode() for text in said]
    width = -(-max(map(len, encoded), default=1) // 64) * 64
    for first in range(0, len(said), JUDGED_TOGETHER):
        batch = encoded[first : first + JUDGED_TOGETHER]
        rows = np.zeros((JUDGED_TOGETHER, width), np.uint8)
        length = np.zeros(JUDGED_TOGETHER, np.int32)
        hands = np.zeros((JUDGED_TOGETHER, 4), np.int32)
        for row, text in enumerate(batch):
            rows[row, : len(text)] = np.frombuffer(text, np.uint8)
            length[row] = len(text)
        hands[: len(batch)] = values[first : first + len(batch)]
        fault = _judge(rows, length, hands, target)
        columns = jax.device_get((fault.outcome, fault.foreign, fault.unused, fault.value))
        for outcome, foreign, unused, value in zip(
            *(column[: len(batch)].tolist() for column in columns), strict=True
        ):
            lists = ([n for n in numbers if n >= 0] for numbers in (foreign, unused))
            yield OUTCOMES[outcome], *lists, value


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
def _judge(reply: jax.Array, length: jax.Array, values: jax.Array, target: jax.Array) -> Fault:
    """The verifier's finding about each reply."""
    return judge(replies.parse(reply, length), values, jnp.asarray(target))
