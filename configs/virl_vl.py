"""V-IRL navigation in street views: compass words in New York in training; left and right, or
other cities, out of distribution."""

from ml_collections import ConfigDict

from configs import common, virl_l


def get_config(arg: str = "tiny") -> ConfigDict:
    """V-IRL-VL. --config=configs/virl_vl.py:tiny | small | 11b"""
    config = common.study(task="virl_vl", scale=arg)
    virl_l.routes(config)
    config.env.update(modality="image")
    config.ood.visual = common.variant(config.env, style="mini")
    SETTINGS[arg](config)
    return config.lock()


def tiny(config: ConfigDict) -> None:
    """0.5M parameters from scratch: two CPU cores, at most 60 minutes."""
    virl_l.tiny(config)
    config.data.update(examples=20_000)
    config.base.update(steps=500)
    config.sft.update(steps=200)
    config.sft_matched.update(steps=200)
    config.rollout.update(images=32)
    config.ppo.update(updates=30)
    config.eval.update(transcripts=2)


def small(config: ConfigDict) -> None:
    """60M parameters from scratch: one GPU."""
    virl_l.small(config)
    config.env.update(image_size=224)
    config.data.update(examples=100_000)


def large(config: ConfigDict) -> None:
    """Llama-3.2-Vision 11B with the paper's settings on 32 devices."""
    virl_l.large(config)
    config.env.update(image_size=1285)
    config.rollout.update(images=8)


SETTINGS = {"tiny": tiny, "small": small, "11b": large}
