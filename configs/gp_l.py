"""GeneralPoints in text: J, Q, K count 10 in training, 11, 12, 13 out of distribution."""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "tiny") -> ConfigDict:
    """GP-L. --config=configs/gp_l.py:tiny | small | 11b"""
    config = common.study(task="gp_l", scale=arg)
    config.ood.rule = dict(rule="face_rank", require_face=True)
    if arg == "tiny":
        config.data.update(ood_share=0.5, suboptimal=0.2, examples=60_000)
        config.base.update(steps=700, learning_rate=3e-3)
        config.sft.update(steps=400, learning_rate=1e-3)
        config.sft_matched.update(steps=200, learning_rate=3e-4)
        config.ppo.update(
            updates=60,
            epochs=2,
            learning_rate=3e-4,
            value_warmup=3,
            clip=0.2,
            value_clip=0.2,
            thought_coef=1.0,
            reward_scale=0.2,
        )
    return config.lock()
