"""Success, and what else a task measures, of one checkpoint on every split:
python -m launch.evaluate --config=configs/gp_l.py:tiny --checkpoint=runs/gp_l_tiny/seed0/rl
[--hands=2048] [--json=FILE]"""

import jax
from absl import flags

from gp_virl.config import StudyConfig
from gp_virl.places import Place, place
from launch import branches, processes
from launch import lab as labs

LINE = "{:<9} {:<17} {:>5} {:<8} {:>8} {:>14} {:>6}"


def main(config: StudyConfig, checkpoint: Place, hands: int | None, file: str | None) -> None:
    """Print a table of success rates; all records go to `file`."""
    lab = labs.open_lab(config)
    params, about = branches.load_params(lab, checkpoint)
    common = {"branch": about["branch"], "seed": config.seed, "updates": about["step"]}
    splits = labs.evaluated(lab)
    with jax.set_mesh(lab.mesh):
        found = labs.evaluate(lab, params, hands or config.eval.hands, common, splits)
    if jax.process_index():
        return
    print(LINE.format("split", "metric", "tries", "decoding", "share", "95% interval", "N"))
    for record in found:
        if not record["metric"].startswith("outcome"):
            cells = [record[name] for name in ("split", "metric", "tries", "decoding")]
            rate = f"{100 * record['value']:.1f}%"
            interval = f"{100 * record['low']:.1f} to {100 * record['high']:.1f}"
            print(LINE.format(*cells, rate, interval, record["n"]))
    if file:
        labs.write_json(place(file), found)


if __name__ == "__main__":
    STUDY = labs.define_config()
    CHECKPOINT = flags.DEFINE_string(
        "checkpoint", None, "directory of checkpoints; the last is used"
    )
    HANDS = flags.DEFINE_integer("hands", None, "per split")
    FILE = flags.DEFINE_string("json", None, "where all records are written")
    JOIN = processes.define_flags()
    flags.mark_flag_as_required("checkpoint")
    labs.run(lambda: main(STUDY(), place(CHECKPOINT.value), HANDS.value, FILE.value), JOIN)
