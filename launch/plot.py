"""Figures and pages from run directories.

python -m launch.plot fig5 runs/gp_l_tiny --out fig5.png
python -m launch.plot fig6 runs/gp_l_tiny --out fig6.pdf --task gp_l
python -m launch.plot transcripts runs/gp_l_tiny --out transcripts.html
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gp_virl.plots import figures, results, transcripts

FORMATS = (".png", ".pdf", ".svg")


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the file was written; 1, with the reason on stderr, when the runs can't be drawn."""
    asked = _parser().parse_args(argv)
    try:
        written = asked.draw(asked)
    except results.ResultsError as wrong:
        print(f"plot: {wrong}", file=sys.stderr)
        return 1
    print(written)
    return 0


def draw_fig5(asked: argparse.Namespace) -> Path:
    """Writes figure 5 of the runs together, each seed from its own run or all from one."""
    records = results.read_runs(asked.runs)
    splits = ("id", asked.ood)
    figure = figures.fig5(records, splits, asked.tries, asked.decoding, asked.title)
    return _save(figure, asked.out)


def draw_fig6(asked: argparse.Namespace) -> Path:
    """Writes figure 6, with the paper's numbers for the task beside it."""
    records = results.read_runs(asked.runs)
    figure = figures.fig6(records, asked.task, asked.ood, asked.tries, asked.decoding, asked.title)
    return _save(figure, asked.out)


def draw_transcripts(asked: argparse.Namespace) -> Path:
    """Writes one page of all transcripts.jsonl of the runs."""
    read = [
        one for run in asked.runs for one in transcripts.read_transcripts(run / "transcripts.jsonl")
    ]
    title = asked.title or "Transcripts: " + ", ".join(run.name for run in asked.runs)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(transcripts.page(read, title), encoding="utf-8")
    return asked.out


def _save(figure: figures.Figure, out: Path) -> Path:
    if out.suffix not in FORMATS:
        raise results.ResultsError(f"--out {out}: its ending must be one of {', '.join(FORMATS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(required=True, metavar="fig5 | fig6 | transcripts")
    for name, draw in (("fig5", draw_fig5), ("fig6", draw_fig6), ("transcripts", draw_transcripts)):
        kind = kinds.add_parser(name, description=draw.__doc__)
        kind.set_defaults(draw=draw)
        kind.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
        kind.add_argument("--out", required=True, type=Path, metavar="FILE")
        kind.add_argument("--title", default="")
        if name == "transcripts":
            continue
        kind.add_argument("--ood", choices=("rule_ood", "visual_ood"), default="rule_ood")
        kind.add_argument("--tries", type=int, default=1, help="replies an episode allows")
        kind.add_argument("--decoding", choices=results.DECODINGS, default="greedy")
        if name == "fig6":
            tasks = sorted({task for task, _ in figures.PAPER})
            kind.add_argument(
                "--task", choices=tasks, default="gp_l", help="of the paper's numbers"
            )
    return parser


if __name__ == "__main__":
    sys.exit(main())
