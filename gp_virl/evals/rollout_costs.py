"""FLOPs and bytes of a rollout: images encoded, contexts read in chunks, replies decoded.

The model needs one forward pass over each conversation, with logits where it speaks. The program
runs whole chunks and lanes, and attends to the whole room of its caches, however full they are.
It decodes with matrices in the dtype of activations, cast once for a rollout.
"""

from dataclasses import dataclass

from gp_virl.evals import costs
from gp_virl.evals.costs import SIZES, Bytes, StepCost, Work
from gp_virl.model.config import ModelConfig


@dataclass(frozen=True)
class Play:
    """`talks` conversations, one after another, in each of B = `lanes` lanes.

    All are alike: a `prompt` and `turns` replies of `reply` tokens each, with `feedback` tokens
    before each reply but the first. After the last turn the next conversation's prompt is read,
    for its value. A lane has `room` tokens, read `chunk` at a time. Every conversation, the next
    one too, has an image of `tiles` tiles (0: there are none), encoded `together` lanes at a time.
    A rollout that ends within a conversation has a fraction of one more.
    """

    lanes: int
    turns: int
    prompt: int
    reply: int
    feedback: int
    room: int
    chunk: int
    tiles: int = 0
    together: int = 1
    talks: float = 1

    def __post_init__(self):
        if self.spoken > self.room:
            raise ValueError(
                f"{self.turns} turns make a conversation of {self.spoken} tokens, a lane has room "
                f"for {self.room}: enlarge the room or shorten prompt, reply or feedback"
            )

    @property
    def spoken(self) -> int:
        """Tokens of a conversation at its end."""
        return self.prompt + self.turns * self.reply + (self.turns - 1) * self.feedback

    @property
    def chunks(self) -> float:
        """Chunks read in the whole rollout; a reply's last token is read with what follows it."""
        first, later = (-(-tokens // self.chunk) for tokens in (self.prompt, self.feedback + 1))
        return self.talks * (first + (self.turns - 1) * later) + first

    @property
    def replies(self) -> float:
        """Replies of each lane."""
        return self.talks * self.turns

    @property
    def steps(self) -> float:
        """Tokens decoded; the first of each reply comes from the context's hidden state."""
        return self.replies * (self.reply - 1)

    @property
    def encodings(self) -> float:
        """Calls of the vision tower."""
        each = -(-self.lanes // min(self.together, self.lanes))
        return (self.talks + 1) * each if self.tiles else 0


def prefill_chunk(config: ModelConfig, lanes: int, chunk: int, room: int, tiles: int = 0) -> Work:
    """What the program does to read the next `chunk` tokens of every lane (Mllama.extend)."""
    tokens = lanes * chunk
    looks = tokens * costs.features(config, tiles) if tiles else None
    return costs.text(config, tokens, tokens * (room + chunk), looks)


def decode_step(config: ModelConfig, lanes: int, room: int, reply: int, tiles: int = 0) -> Work:
    """What the program does to speak one more token in every lane (Mllama.step and logits)."""
    looks = lanes * costs.features(config, tiles) if tiles else None
    pairs = lanes * (room + reply + 1)
    return costs.text(config, lanes, pairs, looks) + costs.heads(config, lanes)


def needed(config: ModelConfig, play: Play) -> Work:
    """One pass over every lane's conversations and over the prompt of the next."""
    talk = _read(config, play.spoken - 1, play.tiles)  # nobody asks what follows the last token
    talk += costs.heads(config, play.turns * play.reply, play.turns)
    next_prompt = _read(config, play.prompt, play.tiles) + costs.heads(config, 0, 1)
    return talk.repeated(play.lanes * play.talks) + next_prompt.repeated(play.lanes)


def _read(config: ModelConfig, tokens: int, tiles: int) -> Work:
    """One pass over so many tokens, and over the image that they look at."""
    pairs = costs.causal_pairs(tokens)
    if not tiles:
        return costs.text(config, tokens, pairs)
    each = costs.features(config, tiles)
    sight = costs.looked_at(config, each) + costs.images(config, 1, tiles)
    return costs.text(config, tokens, pairs, tokens * each) + sight


def executed(config: ModelConfig, play: Play) -> Work:
    """What the program does."""
    chunk = prefill_chunk(config, play.lanes, play.chunk, play.room, play.tiles)
    step = decode_step(config, play.lanes, play.room, play.reply, play.tiles)
    first = costs.heads(config, play.lanes, play.lanes).repeated(play.replies)
    last = costs.heads(config, 0, play.lanes)
    work = chunk.repeated(play.chunks) + step.repeated(play.steps) + first + last
    if not play.tiles:
        return work
    pictures = min(play.together, play.lanes)
    seen = costs.looked_at(config, pictures * costs.features(config, play.tiles))
    return work + (seen + costs.images(config, pictures, play.tiles)).repeated(play.encodings)


def traffic(config: ModelConfig, play: Play) -> Bytes:
    """Weights are read once for each chunk, token step and call of the tower; caches are too.

    They are cast once.
    """
    whole, each = costs.parameters(config), SIZES[config.dtype]
    decoder = whole.self_layers + (whole.cross_layers if play.tiles else 0)
    sight = whole.named("vision", "projector", "cross_kv")
    reads = (
        (play.chunks + play.steps) * decoder
        + play.replies * play.reply * whole.head
        + play.encodings * sight
    )
    cast = whole.total * (SIZES[config.param_dtype] + each)
    token = _cached(config, config.groups * config.self_layers)
    held = play.lanes * play.room * token
    reply = play.lanes * play.reply * token
    new = play.lanes * token * (play.chunk * play.chunks + play.steps)  # written
    features = 0
    if play.tiles:
        crosses = len(config.cross_attention_layers)
        features = play.lanes * costs.features(config, play.tiles) * _cached(config, crosses)
    read = (play.chunks + play.steps) * (held + features) + play.steps * reply
    merged = 2 * play.replies * reply  # replies move behind their contexts
    seen = (play.talks + 1) * features  # written
    caches = read + new + merged + seen
    return Bytes(weights=cast + round(reads * each), caches=round(caches))


def rollout(config: ModelConfig, play: Play) -> StepCost:
    """The whole rollout, each reply of full length; nothing is computed again."""
    model = needed(config, play).total
    return StepCost(model, model, executed(config, play).total, traffic(config, play))


def cache_bytes(config: ModelConfig, play: Play) -> int:
    """Memory that the lanes' caches take: contexts, replies and images."""
    tokens = (play.room + play.reply) * _cached(config, config.groups * config.self_layers)
    if not play.tiles:
        return play.lanes * tokens
    crosses = _cached(config, len(config.cross_attention_layers))
    return play.lanes * (tokens + costs.features(config, play.tiles) * crosses)


def _cached(config: ModelConfig, layers: int) -> int:
    """Bytes of a token's, or a feature's, keys and values in so many layers."""
    numbers = 2 * layers * config.num_key_value_heads * config.head_dim
    return numbers * SIZES[config.dtype]
