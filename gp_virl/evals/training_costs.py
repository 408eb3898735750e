"""FLOPs and bytes of an SFT step and of a PPO update.

Training costs three forward passes, as the gradients with respect to a product's two operands
cost as much as the product each, less gradients that nobody asks for: of pixels, of frozen parts.
The model needs half of the pairs of causal attention and each dialogue's own image; the program
computes what its form of attention does, and again what it hasn't kept.
"""

import dataclasses
from dataclasses import dataclass

from gp_virl import config
from gp_virl.evals import costs
from gp_virl.evals.costs import SIZES, Bytes, StepCost, Work
from gp_virl.model import splash
from gp_virl.model.attention import BLOCK
from gp_virl.model.config import ModelConfig

TOWER = ("patches", "tower_weights", "tower_down", "tower_scores")
# What a recomputed layer does again (fields of costs.Work).
LAYERS = (
    "self_weights", "self_scores", "cross_weights", "cross_features", "cross_scores",
    "tower_weights", "tower_scores",
)  # fmt: skip
SPLASH = ("splash", "splash_interpret")  # forms of attention that are its kernels
# Parameters (fields of costs.Parameters) that each choice of `frozen` leaves as they are.
PARTS = {"vision_model": "vision", "multi_modal_projector": "projector"}
FROZEN = {choice: tuple(PARTS[key] for key in keys) for choice, keys in config.FROZEN.items()}


@dataclass(frozen=True)
class Rows:
    """Rows of `length` tokens, each filled by `dialogues` of equal lengths.

    Every dialogue has an image of `tiles` tiles (0: there are none). Logits are computed at
    `scored` tokens of a row (None: at all but the last), values at `valued` ones. What fills up a
    program's last block of scored tokens isn't counted.
    """

    count: int
    length: int
    dialogues: int = 1
    tiles: int = 0
    scored: int | None = None
    valued: int = 0

    def repeated(self, times: int) -> "Rows":
        return dataclasses.replace(self, count=self.count * times)


def forward(config: ModelConfig, rows: Rows, executed: bool = False) -> Work:
    """One pass over the rows: what it needs, or what a program without recomputation does."""
    tokens = rows.count * rows.length
    scored = rows.length - 1 if rows.scored is None else rows.scored
    pairs = rows.count * rows.dialogues * costs.causal_pairs(rows.length // rows.dialogues)
    work = costs.heads(config, rows.count * scored, rows.count * rows.valued)
    if not rows.tiles:
        work += costs.text(config, tokens, pairs)
    else:
        each, pictures = costs.features(config, rows.tiles), rows.count * rows.dialogues
        work += costs.text(config, tokens, pairs, looks=tokens * each)
        work += costs.looked_at(config, pictures * each)
        work += costs.images(config, pictures, rows.tiles)
    return dataclasses.replace(work, **_scores(config, rows)) if executed else work


def _scores(config: ModelConfig, rows: Rows) -> dict[str, int]:
    """FLOPs of attention as its form computes it: hidden pairs too, and padding of kernels."""
    kernel, form = config.attention_form in SPLASH, config.attention_form
    filled = splash.filled if kernel else int
    length, width = filled(rows.length), _lanes(config.head_dim) if kernel else config.head_dim
    block = splash.block(length) if kernel else BLOCK if form == "blocks" else length
    pair = 4 * config.num_attention_heads * width * rows.count
    selves = config.groups * config.self_layers
    scores = {"self_scores": pair * selves * costs.causal_pairs(length, block)}
    if not rows.tiles:
        return scores
    features = filled(rows.dialogues * costs.features(config, rows.tiles))
    vision, crosses = config.vision, len(config.cross_attention_layers)
    channels = vision.hidden_size // vision.attention_heads
    products = _lanes(channels + 2) + _lanes(channels) if kernel else 2 * channels
    layers = vision.num_hidden_layers + vision.num_global_layers
    pictures, tokens = rows.count * rows.dialogues, filled(costs.tower_tokens(config))
    image = 2 * vision.attention_heads * products * layers * tokens**2
    return scores | {
        "cross_scores": pair * crosses * length * features,
        "tower_scores": image * pictures,
    }


def _lanes(channels: int) -> int:
    """Channels of a head as splash attention pads them."""
    return -(-channels // splash.LANES) * splash.LANES


def trained(frozen: str = "none") -> dict[str, int]:
    """How often each part's forward FLOPs are needed for gradients, by field of costs.Work."""
    times = dict.fromkeys((field.name for field in dataclasses.fields(Work)), 3)
    times["patches"] = 2
    if frozen != "none":
        times |= dict.fromkeys(TOWER, 1) | {"projector": 2}
    if frozen == "vision_and_projector":
        times |= {"projector": 1, "cross_features": 2}
    return times


def recomputed(config: ModelConfig, frozen: str = "none") -> dict[str, float]:
    """How often each part's forward FLOPs are spent again in the backward pass.

    Always the logits, of which only a chunk exists at a time. Kernels keep no attention weights:
    cuDNN's and splash attention's have one product of two again. Written
    out, the attention of a tile of an image is done again. With `remat` each layer is, less its
    last product where no gate follows, whose result no gradient needs.
    """
    tower, form = frozen == "none", config.attention_form
    again = {"head": 1.0}
    cudnn = form == "cudnn" and config.dtype == "bfloat16"  # else XLA's takes its place
    kernels = 0.5 if cudnn or form in SPLASH else 0.0
    again |= dict.fromkeys(("self_scores", "cross_scores", "tower_scores"), kernels)
    if form in ("plain", "blocks"):
        again["tower_scores"] = 1.0
    if config.remat:
        for part in LAYERS:
            again[part] = again.get(part, 0.0) + 1.0
    return {name: times for name, times in again.items() if tower or name not in TOWER}


def gradient_flops(config: ModelConfig, rows: Rows, frozen: str = "none") -> tuple[int, int, int]:
    """FLOPs of loss and gradients over the rows, as StepCost tells them.

    The model's, the model's with what is computed again, and the program's.
    """
    times, again = trained(frozen), recomputed(config, frozen)
    twice = {name: times[name] + again.get(name, 0) for name in times}
    work = forward(config, rows)
    executed = forward(config, rows, executed=True)
    return work.weighted(**times), work.weighted(**twice), executed.weighted(**twice)


def sft_step(
    config: ModelConfig, rows: Rows, microbatch: int, frozen: str = "none", moments: str = "float32"
) -> StepCost:
    """One SFT update on the rows, `microbatch` of them at a time."""
    passes = -(-rows.count // microbatch)
    moved = _gradient_bytes(config, rows, passes, frozen)
    moved += _update_bytes(config, 1, frozen, moments)
    return StepCost(*gradient_flops(config, rows, frozen), moved)


def ppo_update(
    config: ModelConfig,
    rows: Rows,
    microbatch: int,
    epochs: int,
    minibatches: int,
    reference: bool,
    frozen: str = "none",
    moments: str = "float32",
) -> StepCost:
    """All epochs of one PPO update on the rows; with `reference` the initial policy reads them too.

    A minibatch whose rows `microbatch` doesn't divide fills its last one with empty rows.
    """
    passes = minibatches * -(-rows.count // (minibatches * microbatch))
    filled = dataclasses.replace(rows, count=passes * microbatch)
    needed, again, _ = (epochs * flops for flops in gradient_flops(config, rows, frozen))
    executed = epochs * gradient_flops(config, filled, frozen)[2]
    moved = _gradient_bytes(config, rows.repeated(epochs), epochs * passes, frozen)
    moved += _update_bytes(config, epochs * minibatches, frozen, moments)
    if reference:
        reads = -(-rows.count // microbatch)
        unvalued = dataclasses.replace(rows, valued=0)
        read = forward(config, unvalued).total
        needed, again = needed + read, again + read
        whole = dataclasses.replace(unvalued, count=reads * microbatch)
        executed += forward(config, whole, executed=True).total
        moved += Bytes(weights=reads * _used(config, rows) * SIZES[config.param_dtype])
    return StepCost(needed, again, executed, moved)


def _used(config: ModelConfig, rows: Rows) -> int:
    """Parameters that a pass over rows reads."""
    whole = costs.parameters(config)
    idle = () if rows.tiles else ("cross_layers", "cross_kv", "vision", "projector")
    return whole.total - whole.named(*idle)


def _gradient_bytes(config: ModelConfig, rows: Rows, passes: int, frozen: str) -> Bytes:
    """Of `passes` microbatches, rows.count rows in all."""
    whole, size = costs.parameters(config), SIZES[config.param_dtype]
    still = whole.named(*FROZEN[frozen])
    reads = 3 if config.remat else 2
    moving = _used(config, rows) - (still if rows.tiles else 0)
    return Bytes(
        weights=passes * (reads * moving + (still if rows.tiles else 0)) * size,
        gradients=2 * passes * (whole.total - still) * size,
        activations=2 * rows.count * kept(config, rows, frozen),
    )


def _update_bytes(config: ModelConfig, updates: int, frozen: str, moments: str) -> Bytes:
    """The norm and the step each read the gradients; two moments are read and written."""
    whole, size = costs.parameters(config), SIZES[config.param_dtype]
    moving = whole.total - whole.named(*FROZEN[frozen])
    return Bytes(
        gradients=2 * updates * moving * size,
        update=updates * moving * (2 * size + 4 * SIZES[moments]),
    )


def kept(config: ModelConfig, rows: Rows, frozen: str = "none") -> int:
    """Bytes of activations that one row's backward pass finds in memory.

    With `remat` the input of each layer. Without it the operands of all products as well: normed
    inputs, queries, keys, values, attention weights, joined heads and what the MLP multiplies;
    of the tower's attention no weights, which are never kept.
    """
    width, selves = config.hidden_size, config.groups * config.self_layers
    layers, looks, states = selves, 0, 0
    if rows.tiles:
        each = costs.features(config, rows.tiles)
        layers += len(config.cross_attention_layers)
        looks = (layers - selves) * rows.length * rows.dialogues * each
        states = rows.dialogues * (each * width + (_tower(config) if frozen == "none" else 0))
    numbers = rows.length * width * layers + states
    if not config.remat:
        channels = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
        inside = 2 * width + channels + 3 * config.intermediate_size
        pairs = selves * rows.length**2 + looks
        numbers += rows.length * layers * inside + config.num_attention_heads * pairs
    return numbers * SIZES[config.dtype]


def _tower(config: ModelConfig) -> int:
    """Numbers kept of one image in the vision tower."""
    vision = config.vision
    layers = vision.num_hidden_layers + vision.num_global_layers
    inside = 0 if config.remat else 6 * vision.hidden_size + 2 * vision.intermediate_size
    return costs.tower_tokens(config) * layers * (vision.hidden_size + inside)
