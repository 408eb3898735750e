"""Episodes against a plain reading of their tokens: contexts, verdicts, resets, independence."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gp_virl.config import EnvConfig, Rewards
from gp_virl.envs import cards
from gp_virl.envs.card_dialogue import CardTexts
from gp_virl.envs.card_game import CardGame
from gp_virl.envs.formulas import solve
from gp_virl.model.config import ModelConfig
from gp_virl.model.mllama import build
from gp_virl.rollout.episodes import outcomes, rollout, start
from gp_virl.rollout.sampling import Sampling
from gp_virl.text.prompts import BRIEF
from gp_virl.text.template import encode
from gp_virl.text.tokenizer import head_rows, tiny
from tests.chat import feedback, spliced
from tests.rollout.parrot import Parrot

TOKENIZER = tiny()
END = TOKENIZER.convert_tokens_to_ids("<|eot_id|>")
REWARDS = {"solved": 5.0, "wrong_value": -1.0, "wrong_numbers": -2.0, "illegal": -3.0}
TURNS, T, BYTES, CHUNK = 3, 20, 48, 16
ENV = EnvConfig(
    rule="face_ten",
    target=24,
    suits="all",
    require_face=False,
    max_turns=TURNS,
    hands="all",
    held_out=0.1,
    seed=0,
    modality="text",
    image_size=96,
    jitter_shift=0.0,
    jitter_scale=0.0,
    recognition="replaces",
    rewards=Rewards(**REWARDS, unrecognized=-1.5, exceeded=-0.5),
)
TEXTS = CardTexts(BRIEF, cards.face_rule(ENV.rule), ENV.target)
DEAL, DRAW = jax.random.key(3), jax.random.key(4)
GREEDY, WARM = Sampling.of(greedy=True), Sampling.of(1.0)
# Three easy hands, so that prepared replies can solve them.
HANDS = np.array([[0, 1, 2, 3], [5, 5, 5, 5], [12, 1, 3, 0]])


def once(make):
    """Made at the first call and kept, as numbers also when that is inside a jit."""

    @functools.cache
    def kept():
        with jax.ensure_compile_time_eval():
            return make()

    return kept


@once
def game() -> CardGame:
    """The card game with a deck of HANDS, in spades."""
    whole = CardGame.build(ENV, TOKENIZER, BRIEF, T, BYTES)
    deck = np.zeros(whole.env.deck.shape, np.uint8)
    deck[: len(HANDS)] = HANDS * len(cards.SUITS)
    env = whole.env.replace(deck=jnp.asarray(deck), deck_size=jnp.int32(len(HANDS)))
    return whole.replace(env=env)


@once
def parrot() -> Parrot:
    """Solutions of the hands, wrong formulas, nonsense, and a reply that is cut."""
    table, texts = solve(TEXTS.rule, ENV.target), ["8/(3-8/3)", "1+1+2+3+4", "(1", "10-2-4"]
    for hand in HANDS:
        a, b, c, d = (TEXTS.rule.values[rank] for rank in hand)
        texts += [
            *table.solutions(hand)[:2],
            f"{a}+{b}-{c}+{d}",
            f"({a}-{b})/({c}-{c})",
            f"{a}*{d}",
        ]
        texts += [f"{d}-{c}-{b}-{a}", f"{a}/{b}+{c}*{d}"]
    replies = [f'"formula": "{formula}=24"' for formula in texts] + ["no", "", "Q" * T]
    scripts = np.zeros((len(replies), T + 1), np.int32)
    for row, ids in enumerate(encode(TOKENIZER, replies)):
        ids = (ids + [END])[:T]
        scripts[row, : len(ids)] = ids
    return Parrot(jnp.asarray(scripts), head_rows(TOKENIZER))


@once
def random_model() -> tuple[nnx.GraphDef, nnx.State]:
    return build(
        ModelConfig(
            vocab_size=head_rows(TOKENIZER),
            hidden_size=16,
            groups=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            intermediate_size=24,
            value_widths=(8,),
        ),
        jax.random.key(0),
    )


def model(kind: str):
    return parrot() if kind == "parrot" else nnx.merge(*random_model())


@functools.partial(jax.jit, static_argnames=("kind", "lanes"))
def began(kind: str, lanes: int):
    return start(game(), DEAL, jnp.arange(lanes), game().context_limit)


@functools.partial(jax.jit, static_argnames=("kind", "turns"))
def played(kind: str, lanes, how, turns: int):
    return rollout(model(kind), game(), lanes, DEAL, DRAW, how, turns, T, CHUNK, 1)


@functools.partial(jax.jit, static_argnames=("kind", "hands", "lanes"))
def scored(kind: str, how, hands: int, lanes: int):
    return outcomes(
        model(kind), game(), DEAL, DRAW, how, hands, lanes, TURNS, game().context_limit, T, CHUNK, 1
    )


@functools.cache
def records(kind: str, greedy: bool = False, lanes: int = 6, turns: int = 7):
    """(lanes after it, rollout, next values)."""
    after, roll, following = played(kind, began(kind, lanes), GREEDY if greedy else WARM, turns)
    return after, SimpleNamespace(**on_host(roll)), np.asarray(following)


def on_host(roll) -> dict[str, np.ndarray]:
    """The rollout's fields as NumPy arrays."""
    return {name: np.asarray(x) for name, x in vars(roll).items() if x is not None}


@dataclasses.dataclass
class Talk:
    """A conversation as it should be: the user's texts and the replies' tokens so far."""

    episode: int

    def __post_init__(self):
        hand = np.asarray(game().reset(jax.random.fold_in(DEAL, self.episode)).ranks)
        self.values = [TEXTS.rule.values[rank] for rank in hand]
        self.asked = [TEXTS.prompt_text([cards.SYMBOLS[rank] for rank in hand])]
        self.replies: list[list[int]] = []

    def context(self) -> list[int]:
        return spliced(TOKENIZER, self.asked, self.replies)

    def judged(self, reply: list[int]) -> tuple[str, float, bool]:
        """(outcome, reward, whether the episode is over), with the reply added."""
        text = TOKENIZER.decode(reply, skip_special_tokens=True).encode()[:BYTES]
        outcome, told = feedback(TEXTS, text, self.values)
        self.replies, self.asked = [*self.replies, reply], [*self.asked, told]
        failed = outcome != "solved" and len(self.replies) == TURNS
        reward = REWARDS[outcome] + failed * ENV.rewards.exceeded
        return outcome, reward, outcome == "solved" or failed


@pytest.mark.parametrize("kind", ["parrot", "random"])
def test_every_record_against_the_chat_template_and_the_slow_verifier(kind: str) -> None:
    """Hands, contexts with the sampled tokens in them, verdicts, and resets in place."""
    after, roll, _ = records(kind)
    turns, lanes = roll.prompt.shape
    talks, seen = [Talk(lane) for lane in range(lanes)], set()
    coming = lanes  # the episode that the next free lane takes
    for r, lane in np.ndindex(turns, lanes):
        talk, row = talks[lane], roll.tokens[r, lane].tolist()
        prompt, n = roll.prompt[r, lane], roll.reply[r, lane]
        assert (roll.episode[r, lane], roll.turn[r, lane]) == (talk.episode, len(talk.replies))
        assert row[:prompt] == talk.context()
        reply = row[prompt : prompt + n]
        assert len(reply) == n and (n == T or reply[-1] in game().stop_ids)
        outcome, reward, over = talk.judged(reply)
        assert game().outcomes[roll.outcome[r, lane]] == outcome
        assert (roll.reward[r, lane], roll.terminated[r, lane]) == (reward, over)
        assert not roll.truncated[r, lane] and roll.played[r, lane]
        assert roll.closed[r, lane] == over and roll.solved[r, lane] == (outcome == "solved")
        seen.add(outcome)
        if over:
            talks[lane], coming = Talk(coming), coming + 1
    for lane, talk in enumerate(talks):  # what the next rollout begins with
        wanted = after.context.tokens[lane, : after.context.length[lane]].tolist()
        assert wanted == talk.context()
        assert after.state.turn[lane] == len(talk.replies)
        assert after.turn[lane] == len(talk.replies)
    assert after.episode.tolist() == [talk.episode for talk in talks] and after.next == coming
    assert coming >= 3 * lanes
    assert seen == (set(REWARDS) if kind == "parrot" else {"illegal"})


def test_cut_replies_of_an_untrained_model_get_the_end_token_in_the_context() -> None:
    _, roll, _ = records("random")
    cut = 0
    for r, lane in np.argwhere(roll.reply == T):
        at = roll.prompt[r, lane] + T
        if roll.tokens[r, lane, at - 1] == END or roll.terminated[r, lane]:
            continue
        if r + 1 < len(roll.turn):
            assert roll.tokens[r + 1, lane, at] == END
            cut += 1
    assert cut > 10


@pytest.mark.parametrize("kind", ["parrot", "random"])
def test_turns_of_a_conversation_are_nested_prefixes(kind: str) -> None:
    _, roll, _ = records(kind)
    pairs = 0
    for r, lane in np.argwhere(roll.turn[1:] > 0):
        said = roll.prompt[r, lane] + roll.reply[r, lane]
        assert roll.prompt[r + 1, lane] > said
        np.testing.assert_array_equal(roll.tokens[r + 1, lane, :said], roll.tokens[r, lane, :said])
        pairs += 1
    assert pairs > 10


@pytest.mark.parametrize("kind", ["parrot", "random"])
def test_only_what_is_new_is_run(kind: str) -> None:
    """The prompt; then the reply's last token and the feedback; then what a new hand changes."""
    _, roll, _ = records(kind)
    np.testing.assert_array_equal(roll.prefilled[0], roll.prompt[0])
    for r, lane in np.argwhere(roll.turn[1:] > 0):
        said = roll.prompt[r, lane] + roll.reply[r, lane]
        assert roll.prefilled[r + 1, lane] == roll.prompt[r + 1, lane] - said + 1
    for r, lane in np.argwhere(roll.turn[1:] == 0):
        old, new = roll.tokens[r, lane], roll.tokens[r + 1, lane]
        prompt = roll.prompt[r + 1, lane]
        common = int(np.argmax(old[:prompt] != new[:prompt])) if (old != new)[:prompt].any() else -1
        want = prompt - common if common >= 0 else 1
        assert roll.prefilled[r + 1, lane] == want


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["parrot", "random"])
def test_an_episode_does_not_depend_on_the_lanes(kind: str, greedy: bool) -> None:
    """The same episodes beside others: 6 lanes over 7 turns and 4 lanes over 12."""
    found = []
    for lanes, turns in ((6, 7), (4, 12)):
        _, roll, _ = records(kind, greedy, lanes, turns)
        at = {(e, t): rl for rl in np.ndindex(roll.turn.shape)
              for e, t in [(int(roll.episode[rl]), int(roll.turn[rl]))]}  # fmt: skip
        found.append((roll, at))
    (one, here), (other, there) = found
    both = here.keys() & there.keys()
    assert len(both) > 20
    for key in both:
        a, b = here[key], there[key]
        end = one.prompt[a] + one.reply[a]
        np.testing.assert_array_equal(one.tokens[a][:end], other.tokens[b][:end])
        for field in ("prompt", "reply", "outcome", "reward", "terminated", "answer"):
            assert getattr(one, field)[a] == getattr(other, field)[b], field
        np.testing.assert_allclose(one.logp[a], other.logp[b], atol=1e-5)
        np.testing.assert_allclose(one.value[a], other.value[b], atol=1e-5)


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
def test_the_table_of_outcomes_equals_the_records(greedy: bool) -> None:
    hands = 10  # which 4 lanes don't divide
    tries, states = scored("parrot", GREEDY if greedy else WARM, hands, lanes=4)
    table = tries.outcome
    assert table.shape == (hands, TURNS)
    np.testing.assert_array_equal(tries.solved, table == 0)
    np.testing.assert_array_equal(tries.recognized, table >= 0)
    keys = [jax.random.fold_in(DEAL, episode) for episode in range(hands)]
    assert states.ranks.tolist() == [game().reset(key).ranks.tolist() for key in keys]
    _, roll, _ = records("parrot", greedy)  # 7 turns of 6 lanes: two episodes at least of each
    want = np.full((hands, TURNS), -1)
    for r, lane in np.argwhere(roll.episode < hands):
        want[roll.episode[r, lane], roll.turn[r, lane]] = roll.outcome[r, lane]
    np.testing.assert_array_equal(table, want)
    assert (want == 0).any() and (want == -1).any() and (want > 0).any()


def test_a_rollout_goes_on_where_the_last_one_ended() -> None:
    _, whole, following = records("parrot", turns=7)
    lanes, parts = began("parrot", 6), []
    for _ in range(7):
        lanes, roll, value = played("parrot", lanes, WARM, 1)
        parts.append(on_host(roll) | {"following": np.asarray(value)})
    parts = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for field in ("prompt", "reply", "outcome", "reward", "episode", "turn", "terminated", "value"):
        np.testing.assert_array_equal(parts[field], getattr(whole, field), field)
    said = np.arange(whole.tokens.shape[-1]) < (whole.prompt + whole.reply)[..., None]
    np.testing.assert_array_equal(parts["tokens"] * said, whole.tokens * said)
    # The value after a turn is that of the next context, also across two rollouts.
    np.testing.assert_array_equal(parts["following"], following)
    np.testing.assert_array_equal(following[:-1], whole.value[1:])


def test_sampled_logp_and_values_equal_the_uncached_forward() -> None:
    _, roll, _ = records("random")
    turns, lanes = roll.prompt.shape
    net = model("random")

    @jax.jit
    def forward(tokens):
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden = net.hidden(tokens, places)
        return jax.nn.log_softmax(net.logits(hidden)), net.value(hidden)

    gap = 0.0
    for r in range(turns):
        logp, value = jax.device_get(forward(roll.tokens[r]))
        for lane in range(lanes):
            at, n = roll.prompt[r, lane], roll.reply[r, lane]
            said = roll.tokens[r, lane, at : at + n]
            want = logp[lane, np.arange(at - 1, at - 1 + n), said]
            gap = max(gap, np.abs(want - roll.logp[r, lane, :n]).max())
            assert not roll.logp[r, lane, n:].any()
            np.testing.assert_allclose(roll.value[r, lane], value[lane, at - 1], atol=1e-5)
    assert 0 < gap < 1e-4
