"""GeneralPoints as the rollout plays it: tokens in, tokens out.

Everything that tells one split from another is an array, so that one compiled program plays them
all.
"""

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int, Key, UInt8
from transformers import PreTrainedTokenizerBase

from gp_virl.config import EnvConfig
from gp_virl.envs import cards
from gp_virl.envs.card_dialogue import CardDialogue, CardPieces
from gp_virl.envs.card_images import CardTable, Scene
from gp_virl.envs.general_points import OUTCOMES, GeneralPoints, State
from gp_virl.text import replies, template
from gp_virl.text.prompts import Wording
from gp_virl.text.template import PieceBank
from gp_virl.types import Context, Verdict


@struct.dataclass
class CardGame:
    """A split's environment, its compiled texts and pictures, the reader of replies (a `Task`)."""

    env: GeneralPoints
    pieces: CardPieces
    spelling: PieceBank  # token id -> bytes
    stop_ids: Int[Array, "n"]  # a reply ends with any of these
    eot: Int[Array, ""]  # the one that the chat template ends it with
    image_token: Int[Array, ""] | None  # where the prompt has the picture
    table: CardTable | None  # None where the prompt lists the cards
    reply_bytes: int = struct.field(pytree_node=False)  # what lies behind is not read
    answer_field: bytes = struct.field(pytree_node=False)
    context_limit: int = struct.field(pytree_node=False)  # tokens of the longest conversation
    turn_limit: int = struct.field(pytree_node=False)  # replies of the longest episode

    @classmethod
    def build(
        cls,
        config: EnvConfig,
        tokenizer: PreTrainedTokenizerBase,
        wording: Wording,
        reply_length: int,
        reply_bytes: int,
    ) -> "CardGame":
        """Compiled and checked: TemplateError or ValueError if the parts don't fit together."""
        env = GeneralPoints.build(config)
        dialogue = CardDialogue.build(
            tokenizer, wording, cards.face_rule(config.rule), config.target, env.pictured
        )
        table = None
        if env.pictured:
            table = CardTable.build(
                config.image_size, bool(config.jitter_shift or config.jitter_scale)
            )
        return cls(
            env=env,
            pieces=dialogue.pieces,
            spelling=replies.byte_bank(tokenizer),
            stop_ids=jnp.array(dialogue.stops),
            eot=jnp.int32(dialogue.eot),
            image_token=jnp.int32(dialogue.image_token) if env.pictured else None,
            table=table,
            reply_bytes=reply_bytes,
            answer_field=wording.answer_field.encode(),
            context_limit=dialogue.context_limit(reply_length, config.max_turns),
            turn_limit=config.max_turns,
        )

    @property
    def outcomes(self) -> tuple[str, ...]:
        """Names of the values of `Verdict.outcome`; the first is 'solved'."""
        return OUTCOMES

    def reset(self, key: Key[Array, ""]) -> State:
        """A new hand."""
        return self.env.reset(key)

    def scene(self, state: State) -> Scene | None:
        """What the hand's picture shows; None where the prompt lists the cards."""
        return state.scene

    def picture(self, scene: Scene | None) -> UInt8[Array, "H W 3"] | None:
        """The picture of a scene, `image_size` pixels along each side; None for None."""
        return None if self.table is None else self.table.compose(scene)

    def observe(self, state: State, past: Context) -> Context:
        """The whole context wanted: the prompt of a new hand, else `past` and the feedback.

        `past` ends with the last reply, whose tokens stay as they were sampled; the feedback
        starts with the end token if that reply was cut before it.
        """
        prompt = template.compose(
            self.pieces.bank, self.pieces.prompt(state.ranks), past.tokens.shape[0]
        )
        fault, ended = state.fault, past.tokens[past.length - 1] == self.eot
        entries = self.pieces.feedback(
            fault.outcome, fault.foreign, fault.unused, fault.value, ended
        )
        later = template.append(past, self.pieces.bank, entries)
        fresh = state.turn == 0
        return Context(
            jnp.where(fresh, prompt.tokens, later.tokens),
            jnp.where(fresh, prompt.length, later.length),
        )

    def judge(
        self, state: State, tokens: Int[Array, "T"], length: Int[Array, ""]
    ) -> tuple[State, Verdict]:
        """The state after a reply of `length` tokens, and its verdict."""
        text, size = replies.read(self.spelling, tokens, length, self.reply_bytes)
        return self.env.step(state, replies.parse(text, size))

    def answer_start(self, tokens: Int[Array, "T"], length: Int[Array, ""]) -> Int[Array, ""]:
        """How many reply tokens end before the last answer field; all of them if there is none."""
        return replies.field_start(
            self.spelling, tokens, length, self.reply_bytes, self.answer_field
        )
