"""Files and folders of routes, with and without street views, good and bad."""

import os
import pickle
import time
from pathlib import Path

import pytest
from absl import logging

from gp_virl.envs import routes
from gp_virl.envs.panorama_map import drawn_between, metres
from gp_virl.envs.route_files import read_routes, routes_of, street_view_folders
from gp_virl.envs.routes import RouteError
from tests.envs.route_examples import (
    CORNER,
    GOAL,
    GOLDEN,
    START,
    changed,
    golden,
    moved,
    two_legs,
    write,
)

# Panoramas every ten metres of the way; those of the milestones are a little beside them.
STREET = {moved(START, north, 0.5): f"n{north}" for north in range(0, 101, 10)}
STREET |= {moved(CORNER, 0.5, east): f"e{east}" for east in range(10, 41, 10)}
EVERY = tuple(STREET.values())


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """What is warned of while a test runs."""
    told: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda form, *given: told.append(form % given))
    return told


def refused(path: Path, **how) -> str:
    with pytest.raises(RouteError) as caught:
        read_routes(path, 3, **how)
    assert str(caught.value).startswith(f"{path}: no route was read")
    return "\n".join(caught.value.problems)


def test_the_wrappings_hold_the_same_routes(tmp_path: Path) -> None:
    folder = write(tmp_path / "wrapped", [[two_legs(), changed("init_heading", 9)], 812])
    first, second = read_routes(folder, 3)
    assert read_routes(folder / "route_infos.json", 3) == [first, second]
    assert read_routes(str(folder), 3) == [first, second]
    assert (first.start_heading, second.start_heading) == (None, 9)
    assert (first.name, second.name) == ("0 to Hall", "1 to Hall")
    bare = write(tmp_path / "bare", two_legs())
    assert read_routes(bare, 3) == [first]
    other = bare / "mine.json"
    (bare / "route_infos.json").rename(other)
    assert read_routes(other, 3) == [first]


def test_a_folder_of_regions(tmp_path: Path) -> None:
    for region in ("Soho_Europe", "Central_Asia"):
        write(tmp_path / region, [[changed("dest_place.region", ...), two_legs()], 0])
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").touch()
    read = read_routes(tmp_path, 3)
    assert [(route.name, route.region) for route in read] == [
        ("Central_Asia/0 to Hall", "Central_Asia"),
        ("Central_Asia/1 to Hall", "Old_Town"),
        ("Soho_Europe/0 to Hall", "Soho_Europe"),
        ("Soho_Europe/1 to Hall", "Old_Town"),
    ]
    assert all(point.pano is None for route in read for point in route.waypoints)


def test_regions_with_their_own_panoramas_and_with_common_ones(tmp_path: Path) -> None:
    own = write(tmp_path / "own", two_legs(), STREET, EVERY)
    write(tmp_path / "other", two_legs())
    others = {place: f"c{name}" for place, name in STREET.items()}
    (tmp_path / "gps_pano_mapping.pkl").write_bytes(pickle.dumps(others))
    starts = {route.name: route.waypoints[0].pano for route in read_routes(tmp_path, 3)}
    assert starts == {"own/0 to Hall": "n0", "other/0 to Hall": "cn0"}
    assert street_view_folders(tmp_path) == [own / "street_views"]
    assert street_view_folders(own / "route_infos.json") == [own / "street_views"]
    assert street_view_folders(tmp_path / "other") == []


def test_waypoints_without_panoramas_are_drawn() -> None:
    given = golden()
    for most in (0, 1, 3, 50):
        for route, source in zip(read_routes(GOLDEN, most), given, strict=True):
            results, start = source["route_results"], source["start_place"]["relocated_geocode"]
            milestones = [tuple(start), *map(tuple, results["geocode_list"])]
            expected = [milestones[0]]
            for before, after in zip(milestones, milestones[1:], strict=False):
                expected += [*drawn_between(before, after, most), after]
            assert [point.position for point in route.waypoints] == expected
            kinds = [point.kind for point in route.waypoints]
            assert kinds[0] == "turn" and kinds[-1] == "stop"
            assert kinds.count("turn") == len(route.legs) == len(milestones) - 1
            counts = [len(run) for run in "".join(kind[0] for kind in kinds).split("t")]
            assert max(counts) <= most + 1
    short = [p for p in read_routes(GOLDEN, 9)[2].waypoints if p.sentence == 3]
    assert short == []  # 4 m


def test_waypoints_are_panoramas_where_they_are_known(tmp_path: Path) -> None:
    folder = write(tmp_path, [[two_legs()], 0], STREET, EVERY)
    (route,) = read_routes(folder, 3, need_views=True)
    panos = [point.pano for point in route.waypoints]
    assert panos == ["n0", "n20", "n50", "n80", "n100", "e10", "e20", "e30", "e40"]
    assert [p.kind for p in route.waypoints].count("forward") == 6
    at = {name: place for place, name in STREET.items()}
    for point in route.waypoints:
        milestone = {"n0": START, "n100": CORNER, "e40": GOAL}.get(point.pano)
        assert point.position == (milestone or at[point.pano])
        ends = (START, CORNER) if point.pano in at and point.pano[0] == "n" else (CORNER, GOAL)
        assert milestone or min(metres(point.position, end) for end in ends) > 8
    assert len(read_routes(folder, 0)[0].waypoints) == 3
    assert len(read_routes(folder, 99)[0].waypoints) == 3 + 9 + 3


def test_routes_in_memory_are_those_of_a_folder(tmp_path: Path) -> None:
    objects = [two_legs(), changed("init_heading", 9), changed("dest_place.region", ...)]
    for mapping, pictures in ((STREET, EVERY), (None, ())):
        folder = write(tmp_path / f"from{len(pictures)}", [objects, 3], mapping, pictures)
        for most in (0, 3, 99):
            read = read_routes(folder, most)
            assert routes_of(objects, mapping, most, folder.name) == read
    assert read[2].region == "from0"


def test_wrong_routes_in_memory_are_told() -> None:
    with pytest.raises(RouteError, match="mine: no route was read\n  route '0 to Hall': init_h"):
        routes_of([changed("init_heading", "x")], STREET, 3, "mine")
    with pytest.raises(RouteError, match="mine: given an object, allowed: {.lat"):
        routes_of([two_legs()], {}, 3, "mine")
    with pytest.raises(RouteError, match="mine: given no route, allowed: at least one"):
        routes_of([], STREET, 3, "mine")
    with pytest.raises(RouteError, match="geocode_list.0.: no street view: the nearest"):
        routes_of([two_legs()], {START: "n0"}, 3, "mine")
    with pytest.raises(ValueError, match="max_straight: given -1"):
        routes_of([two_legs()], STREET, -1, "mine")


def test_a_panorama_without_its_files_is_passed_by(tmp_path: Path) -> None:
    folder = write(tmp_path, two_legs(), STREET, EVERY)
    (folder / "street_views" / "n20.jpg").unlink()
    (folder / "street_views" / "n30.metadata.json").unlink()
    (route,) = read_routes(folder, 99)
    panos = {point.pano for point in route.waypoints}
    assert panos == set(EVERY) - {"n20", "n30"}


def test_milestones_need_a_street_view(tmp_path: Path) -> None:
    far = {
        place: name for place, name in STREET.items() if name not in ("n90", "n100", "e10", "e20")
    }
    folder = write(tmp_path, [[two_legs(), changed("dest_place.name", ...)], 0], far)
    assert "dest_place.name: missing" in refused(folder)  # before any point is looked up
    folder = write(tmp_path, [[changed("init_heading", 5), two_legs()], 0], far)
    told = refused(folder).split("\n")
    assert [line.split(" is ")[0] for line in told] == [
        f"route '{index} to Hall': route_results.geocode_list[0]: no street view: the nearest "
        "panorama, n80,"
        for index in range(2)
    ]
    assert "20.0 m away, allowed: closer than 20 m" in told[0]
    write(tmp_path, [[two_legs()], 0], STREET, EVERY)
    (folder / "street_views" / "n0.jpg").unlink()
    told = refused(folder)
    assert "route '0 to Hall': start_place.relocated_geocode: no street view: n0.jpg" in told


def test_a_route_without_a_street_view_is_left_out(tmp_path: Path, warnings: list[str]) -> None:
    away = [list(moved(point, 5000, 0)) for point in (CORNER, GOAL)]
    wrong = changed("route_results.geocode_list", away)
    late = changed("start_place.relocated_geocode", away[0])
    objects = [wrong, two_legs(), late, changed("init_heading", 9)]
    folder = write(tmp_path, [objects, 0], STREET, EVERY)
    read = read_routes(folder, 3, need_views=True)
    assert [(route.name, route.start_heading) for route in read] == [
        ("1 to Hall", None), ("3 to Hall", 9),
    ]  # fmt: skip
    (told,) = warnings
    assert told.startswith(f"{folder}: 2 of 4 routes are left out\n  route '0 to Hall': route_res")
    assert told.count("\n") == 2 and "route '2 to Hall': start_place.relocated_geocode: no" in told
    assert "geocode_list[0]: no street view: the nearest" in told and "geocode_list[1]: no" in told
    assert routes_of(objects, STREET, 3, "mine") == read
    assert warnings[1] == told.replace(str(folder), "mine")
    read_routes(write(tmp_path, [[two_legs()], 0]), 3)
    assert len(warnings) == 2
    with pytest.raises(RouteError, match="route '3': dest_place.name: missing"):
        routes_of([*objects[:3], changed("dest_place.name", ...)], STREET, 3, "mine")


def test_of_many_routes_left_out_a_few_are_named(warnings: list[str]) -> None:
    wrong = changed("start_place.relocated_geocode", [1.0, 2.0])
    assert len(routes_of([wrong] * 9 + [two_legs()], STREET, 3, "mine")) == 1
    (told,) = warnings
    assert told.count("\n") == 6 and told.endswith("\n  and 4 more") and "'5 to Hall'" not in told


def test_street_views_that_are_needed(tmp_path: Path) -> None:
    folder = write(tmp_path, two_legs())
    told = refused(folder, need_views=True)
    assert (
        "gps_pano_mapping.pkl" in told and "street_views: missing; street views need both" in told
    )
    write(tmp_path, two_legs(), STREET)
    assert "street_views: missing" in refused(folder, need_views=True)
    assert read_routes(folder, 3)[0].waypoints[0].pano == "n0"
    write(tmp_path, two_legs(), STREET, EVERY)
    (folder / "gps_pano_mapping.pkl").unlink()
    assert "gps_pano_mapping.pkl: missing" in refused(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe\x00", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"[]", r"given a list of 0, allowed: \[\[route, ...\], counter\]"),
        (b"5", "given an integer, allowed"),
        (b"null", "given None, allowed"),
        (b"[[], 0]", "given no route, allowed: at least one"),
        (b"[[{}], 0.5]", "with an integer counter"),
        (b"[[{}], 0, 1]", "given a list of 3"),
        (b"[{}, 0]", "given a list of 2"),
        (b"[[5], 0]", "route 0: given an integer, allowed: an object"),
        (b"{}", "route '0': start_place: missing"),
    ],
)
def test_files_that_are_no_routes(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "route_infos.json").write_bytes(content)
    with pytest.raises(RouteError, match=message):
        read_routes(tmp_path, 3)


def test_paths_that_hold_no_routes(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing", GOLDEN.parent / "none.json"):
        assert "no routes are there; allowed: a JSON file" in refused(path)


@pytest.mark.parametrize("most", [-1, 1.5, True, "3", None])
def test_a_wrong_max_straight(most: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        read_routes(GOLDEN, most)


def test_problems_of_all_files_are_told_together(tmp_path: Path) -> None:
    write(tmp_path / "a", [[changed("init_heading", "x"), two_legs()], 0], {})
    write(tmp_path / "b", [[two_legs(), changed("dest_place.name", 5), 7], 0])
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "route_infos.json").write_text("{")
    told = refused(tmp_path).split("\n")
    assert [line.split(": given")[0] for line in told[:4]] == [
        f"{tmp_path}/a/gps_pano_mapping.pkl",
        "route 'a/0 to Hall': init_heading",
        "route 'b/1': dest_place.name",
        "route b/2",
    ]
    assert "c/route_infos.json: not readable as JSON" in told[4] and len(told) == 5


@pytest.mark.parametrize(
    "mapping",
    [
        [], {}, 5, {(1.0, 2.0): 5}, {(1.0,): "a"}, {(1.0, "2"): "a"}, {1.5: "a"}, {"x": "a"},
        {(float("nan"), 1.0): "a"}, {(91.0, 1.0): "a"}, {(1.0, 2.0): ""}, {(1.0, 2.0): "../a"},
        {(1.0, 2.0): "a\\b"}, {(1.0, 2.0): ".."}, {(1.0, 2.0): ["a"]},
    ],
)  # fmt: skip
def test_a_mapping_of_another_form(tmp_path: Path, mapping: object) -> None:
    folder = write(tmp_path, two_legs(), mapping)
    told = refused(folder)
    assert told.startswith(f"{folder}/gps_pano_mapping.pkl: given ") and "panorama" in told


def test_a_mapping_with_many_wrong_entries_names_a_few(tmp_path: Path) -> None:
    folder = write(tmp_path, two_legs(), STREET | {(1.0, float(i)): i for i in range(100)})
    told = refused(folder)
    assert "(1.0, 4.0): 4} and 95 more" in told and len(told) < 1000


def nested(levels: int) -> bytes:
    """A pickle of a mapping whose value is a list within a list within a list, and so on."""
    key = pickle.dumps((1.0, 2.0), 2)[2:-1]
    return b"\x80\x02}" + key + b"]" * levels + b"a" * (levels - 1) + b"s."


def doubled(levels: int) -> list:
    """Nested lists whose repr doubles with each level."""
    value: list = []
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "content",
    [
        nested(20_000),
        pickle.dumps({(1.0, 2.0): doubled(40)}),
        pickle.dumps(doubled(40)),
        pickle.dumps((doubled(40), 1)),
        pickle.dumps({(10**5000, 1.0): "a"}),
        pickle.dumps(10**5000),
        pickle.dumps({(1.0, 2.0): "/" * 10**6}),
    ],
    ids=["deep", "value", "list", "tuple", "key", "number", "text"],
)  # fmt: skip
def test_a_mapping_that_cannot_be_written_out(tmp_path: Path, content: bytes) -> None:
    folder = write(tmp_path, two_legs())
    (folder / "gps_pano_mapping.pkl").write_bytes(content)
    began = time.process_time()
    told = refused(folder)
    assert time.process_time() - began < 2  # 0.03 s where beartype doesn't look on
    assert told.startswith(f"{folder}/gps_pano_mapping.pkl: given ") and len(told) < 1000


def test_routes_that_cannot_be_written_out() -> None:
    for path in ("init_heading", "dest_place.name", "start_place.relocated_geocode"):
        for value in (doubled(40), (doubled(40),), 10**5000, [doubled(40), 10**5000]):
            with pytest.raises(RouteError, match=f"{path}: given ") as caught:
                routes_of([changed(path, value)], STREET, 3, "mine")
            assert len(str(caught.value)) < 500
    with pytest.raises(RouteError, match="route 0: given .*, allowed: an object"):
        routes_of([(doubled(40),)], STREET, 3, "mine")


class Attack:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_malicious_mapping_executes_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    folder = write(tmp_path / "routes", two_legs(), {(40.0, -74.0): Attack(f"touch {trace}")})
    told = refused(folder)
    assert "gps_pano_mapping.pkl: byte " in told and "nothing was run" in told
    assert not trace.exists()
    pickle.loads((folder / "gps_pano_mapping.pkl").read_bytes())  # the attack itself works
    assert trace.exists()


def test_the_whole_golden_file_makes_a_bank() -> None:
    read = read_routes(GOLDEN, 3)
    bank, names, panos = routes.bank(read)
    assert [route.region for route in read[4:]] == ["Synthetic", "Example_Square_EX_North_America"]
    assert bank.length.tolist() == [len(route.waypoints) for route in read]
    assert "Dr. Martens: Soho" in names and panos == ()
