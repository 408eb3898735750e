"""GeneralPoints in text: J, Q, K count 10 in training, 11, 12, 13 out of distribution."""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "tiny") -> ConfigDict:
    """GP-L. --config=configs/gp_l.py:tiny | small | 11b"""
    config = common.study(task="gp_l", scale=arg)
    config.ood.rule = common.variant(config.env, rule="face_rank", require_face=True)
    SETTINGS[arg](config)
    return config.lock()


def tiny(config: ConfigDict) -> None:
    """0.25M parameters from scratch: two CPU cores, at most 20 minutes."""
    config.data.update(ood_share=0.5, suboptimal=0.2, examples=60_000)
    config.base.update(steps=700, learning_rate=3e-3)
    config.sft.update(steps=800, learning_rate=1e-3)
    config.sft_matched.update(steps=800, learning_rate=1e-4)
    config.rollout.update(lanes=256)
    config.ppo.update(
        updates=40,
        epochs=2,
        learning_rate=1e-4,
        value_learning_rate=3e-3,
        value_warmup=4,
        value_shapes_decoder=False,
        clip=0.2,
        value_clip=0.2,
        reward_scale=0.2,
    )
    config.eval.update(points=8)


def small(config: ConfigDict) -> None:
    """44M parameters from scratch: one GPU."""
    tiny(config)
    config.model.dtype = "bfloat16"
    config.data.update(examples=400_000)
    for run in (config.base, config.sft, config.sft_matched):
        run.update(batch_size=128, microbatch=128)
    config.base.update(steps=1500, learning_rate=6e-4, warmup=200)
    config.sft.update(steps=800, learning_rate=2e-4)
    config.sft_matched.update(steps=800, learning_rate=2e-5)
    config.rollout.update(lanes=512)
    config.ppo.update(updates=60, learning_rate=2e-5, microbatch=64)
    config.eval.update(hands=4096, curve_hands=2048, lanes=1024, points=10)


def large(config: ConfigDict) -> None:
    """Llama-3.2-Vision 11B with the paper's settings, 256 turns a device on 32 devices.

    The tokenizer is a directory or a hub name; the base run is the paper's SFT initialisation.
    Eight devices share each copy of the weights that decoding reads; on 16 with twice the memory,
    or more, --config.mesh.tensor=4 lets four do so.
    """
    config.text.update(tokenizer="meta-llama/Llama-3.2-11B-Vision-Instruct", wording="full")
    config.model.update(dtype="bfloat16", remat=True)
    for run in (config.base, config.sft, config.sft_matched):
        run.update(steps=400, learning_rate=1e-6, length=1024, batch_size=64, microbatch=8)
        run.update(pictures=1)
    config.base.update(steps=200)
    config.rollout.update(lanes=128, turns=64, reply_length=512, reply_bytes=2048, context=4096)
    config.rollout.update(chunk=256)
    config.ppo.update(microbatch=4, pictures=1)
    config.eval.update(lanes=128)
    config.mesh.update(fsdp=4, tensor=8)


SETTINGS = {"tiny": tiny, "small": small, "11b": large}
