"""GeneralPoints in text: J, Q, K count 10 in training, 11, 12, 13 out of distribution."""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "tiny") -> ConfigDict:
    """GP-L. --config=configs/gp_l.py:tiny | small | 11b"""
    config = common.study(task="gp_l", scale=arg)
    config.ood.rule = dict(rule="face_rank", require_face=True)
    return config.lock()
