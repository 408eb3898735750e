"""GeneralPoints seen as a picture: black suits in training; other values of J, Q, K, or red suits,
out of distribution."""

from ml_collections import ConfigDict

from configs import common, gp_l


def get_config(arg: str = "tiny") -> ConfigDict:
    """GP-VL. --config=configs/gp_vl.py:tiny | small | 11b"""
    config = common.study(task="gp_vl", scale=arg)
    config.env.update(modality="image", suits="black")
    config.ood.rule = common.variant(config.env, rule="face_rank", require_face=True)
    config.ood.visual = common.variant(config.env, suits="red")
    SETTINGS[arg](config)
    return config.lock()


def tiny(config: ConfigDict) -> None:
    """0.5M parameters from scratch: two CPU cores, at most 45 minutes."""
    gp_l.tiny(config)
    config.env.update(image_size=96)
    config.data.update(examples=40_000)
    config.base.update(steps=800)
    config.sft.update(steps=400)
    config.sft_matched.update(steps=400)
    config.rollout.update(images=32)
    config.ppo.update(updates=30)
    config.eval.update(hands=1024, curve_hands=256, points=5, transcripts=12)


def small(config: ConfigDict) -> None:
    """60M parameters from scratch: one GPU."""
    gp_l.small(config)
    config.env.update(image_size=224)
    config.data.update(examples=200_000)
    config.eval.update(hands=2048, curve_hands=1024)


def large(config: ConfigDict) -> None:
    """Llama-3.2-Vision 11B with the paper's settings on 32 devices."""
    gp_l.large(config)
    config.env.update(image_size=1200)
    config.rollout.update(images=8)


SETTINGS = {"tiny": tiny, "small": small, "11b": large}
