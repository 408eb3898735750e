"""Figures and pages from run directories, and maps of routes.

python -m launch.plot fig5 runs/gp_l_tiny --out fig5.png
python -m launch.plot fig6 runs/gp_l_tiny runs/virl_l_tiny --out fig6.pdf
python -m launch.plot fig7 runs/gp_vl_tiny runs/virl_vl_tiny --out fig7.svg
python -m launch.plot transcripts runs/gp_l_tiny --out transcripts.html
python -m launch.plot route nyc_1k_routes --index=3 --out route.png
python -m launch.plot route --style=lagos --seed=1 --index=0 --out route.png
"""

import argparse
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from gp_virl.envs.city_styles import STYLES, TRAINING
from gp_virl.plots import results, tasks, transcripts, visual
from gp_virl.plots.paper import TASKS
from gp_virl.plots.studies import read_studies
from launch import route_picture
from launch.describe_routes import count, walking_options

FIGURES: dict[str, Callable[..., Figure]] = {
    "fig1": tasks.fig1,
    "fig5": tasks.fig5,
    "fig6": tasks.fig6,
    "fig7": visual.fig7,
    "fig8": visual.fig8,
    "fig18": tasks.fig18,
}
FORMATS = (".png", ".pdf", ".svg")


def main(argv: Sequence[str] | None = None) -> int:
    """0 when the file was written; 1, with the reason on stderr, when the runs can't be drawn."""
    asked = _parser().parse_args(argv)
    try:
        written = asked.draw(asked)
    except (ValueError, OSError) as wrong:
        print(f"plot: {wrong}", file=sys.stderr)
        return 1
    print(written)
    return 0


def draw_figure(asked: argparse.Namespace) -> Path:
    """Writes one of the paper's figures; runs of the same task are its seeds."""
    studies = read_studies(asked.runs, asked.task)
    about = {name: getattr(asked, name) for name in ("tries", "decoding", "title")}
    if "ood" in asked:
        about["ood"] = asked.ood
    return _save(FIGURES[asked.kind](studies, **about), asked.out)


def draw_transcripts(asked: argparse.Namespace) -> Path:
    """Writes one page of all transcripts.jsonl of the runs."""
    read = [
        one for run in asked.runs for one in transcripts.read_transcripts(run / "transcripts.jsonl")
    ]
    title = asked.title or "Transcripts: " + ", ".join(run.name for run in asked.runs)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(transcripts.page(read, title), encoding="utf-8")
    return asked.out


def draw_route(asked: argparse.Namespace) -> Path:
    """Draws a route's map and what is seen at its waypoints, facing as the expert arrives.

    Without ROUTES the route is one of a procedural city's.
    """
    if asked.routes is None:
        style, seed = asked.style or TRAINING, asked.seed or 0
        scenery = route_picture.of_city(style, seed, asked.index, asked.max_straight)
    elif asked.style is not None or asked.seed is not None:
        raise ValueError("--style and --seed choose a procedural city; leave them out with ROUTES")
    else:
        scenery = route_picture.of_files(asked.routes, asked.index, asked.max_straight)
    return _save(
        route_picture.draw(scenery, asked.rule, asked.start_heading, asked.title), asked.out
    )


def _tries(text: str) -> int | None:
    """A number of tries; None for 'all'."""
    if text != "all" and not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'all' nor a number of at least 1")
    return None if text == "all" else int(text)


def _save(figure: Figure, out: Path) -> Path:
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
    kinds = parser.add_subparsers(
        required=True, dest="kind", metavar=" | ".join([*FIGURES, "transcripts", "route"])
    )
    for name, figure in FIGURES.items():
        kind = _kind(kinds, name, figure.__doc__, draw_figure)
        if "ood" in inspect.signature(figure).parameters:
            kind.add_argument("--ood", choices=("rule_ood", "visual_ood"), default="rule_ood")
        kind.add_argument("--tries", type=_tries, default=1, help="replies that count, or all")
        kind.add_argument("--decoding", choices=results.DECODINGS, default="greedy")
        kind.add_argument("--task", choices=TASKS, help="of runs that don't tell it themselves")
    _kind(kinds, "transcripts", draw_transcripts.__doc__, draw_transcripts)
    route = _kind(kinds, "route", draw_route.__doc__, draw_route, of_runs=False)
    route.add_argument("routes", nargs="?", type=Path, metavar="ROUTES", help="file or folder")
    route.add_argument("--index", type=count, default=0, metavar="N", help="of the route, from 0")
    route.add_argument("--style", choices=list(STYLES), help=f"of the city (default: {TRAINING})")
    route.add_argument("--seed", type=count, metavar="N", help="of the city (default: 0)")
    walking_options(route)
    return parser


def _kind(
    kinds, name: str, about: str, draw: Callable, of_runs: bool = True
) -> argparse.ArgumentParser:
    kind = kinds.add_parser(
        name, description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kind.set_defaults(draw=draw)
    if of_runs:
        kind.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    kind.add_argument("--out", required=True, type=Path, metavar="FILE")
    kind.add_argument("--title", default="")
    return kind


if __name__ == "__main__":
    sys.exit(main())
