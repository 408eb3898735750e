"""V-IRL navigation with observations told: compass words in training, left and right out of
distribution."""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "tiny") -> ConfigDict:
    """V-IRL-L. --config=configs/virl_l.py:tiny | small | 11b"""
    config = common.study(task="virl_l", scale=arg)
    routes(config)
    SETTINGS[arg](config)
    return config.lock()


def routes(config: ConfigDict) -> None:
    """The environment of both V-IRL tasks, and its rule OOD."""
    config.env = dict(
        rule="absolute",
        source="city",
        style="new_york",
        routes=1000,
        max_straight=2,
        max_turns=2,
        part="all",
        held_out=0.1,
        seed=0,
        modality="text",
        image_size=96,
        layout="front_right_back_left",
        panorama_bytes=8 << 30,
        rewards=dict(correct=1.0, wrong_action=-1.0, not_detected=-1.5, exceeded=-1.0),
    )
    config.ood.rule = common.variant(config.env, rule="relative")
    config.text.tokenizer = "tiny_routes"
    config.data.max_errors = 1
    config.rollout.update(reply_length=40, reply_bytes=320, context=320)


def tiny(config: ConfigDict) -> None:
    """0.25M parameters from scratch: two CPU cores, at most 30 minutes."""
    config.data.update(ood_share=0.5, suboptimal=0.1, examples=30_000)
    for run in (config.base, config.sft, config.sft_matched):
        run.update(length=448)
    config.base.update(steps=600, learning_rate=3e-3, batch_size=24, microbatch=24)
    config.sft.update(steps=300, learning_rate=1e-3, batch_size=24, microbatch=24)
    config.sft_matched.update(steps=300, learning_rate=2e-4, batch_size=24, microbatch=24)
    config.rollout.update(lanes=128, turns=6)
    config.ppo.update(
        updates=60,
        epochs=2,
        microbatch=16,
        learning_rate=2e-4,
        value_learning_rate=3e-3,
        value_warmup=3,
        value_shapes_decoder=False,
        clip=0.2,
        value_clip=0.2,
    )
    config.eval.update(hands=256, curve_hands=64, lanes=128, points=5, transcripts=4)


def small(config: ConfigDict) -> None:
    """45M parameters from scratch: one GPU."""
    tiny(config)
    config.model.dtype = "bfloat16"
    config.data.update(examples=200_000)
    for run in (config.base, config.sft, config.sft_matched):
        run.update(batch_size=64, microbatch=64)
    config.base.update(steps=1500, learning_rate=6e-4, warmup=200)
    config.sft.update(steps=800, learning_rate=2e-4)
    config.sft_matched.update(steps=800, learning_rate=2e-5)
    config.rollout.update(lanes=512)
    config.ppo.update(updates=60, learning_rate=2e-5)
    config.eval.update(hands=1024, curve_hands=256, lanes=512, points=10)


def large(config: ConfigDict) -> None:
    """Llama-3.2-Vision 11B with the paper's settings, 256 turns a device on 32 devices."""
    config.text.update(tokenizer="meta-llama/Llama-3.2-11B-Vision-Instruct", wording="full")
    config.model.update(dtype="bfloat16", remat=True)
    for run in (config.base, config.sft, config.sft_matched):
        run.update(learning_rate=1e-6, length=2048, batch_size=64, microbatch=4)
        run.update(pictures=1)
    config.base.update(steps=200)
    config.sft.update(steps=400)
    config.sft_matched.update(steps=400)
    config.rollout.update(lanes=128, turns=64, reply_length=512, reply_bytes=2048, context=4096)
    config.rollout.update(chunk=256)
    config.ppo.update(microbatch=4, pictures=1)
    config.eval.update(hands=1024, lanes=128)
    config.mesh.update(fsdp=4, tensor=8)


SETTINGS = {"tiny": tiny, "small": small, "11b": large}
