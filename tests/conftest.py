"""Test settings: run on the CPU, check every annotated shape, draw the same examples each time."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401 - the hook finds it by name

# gp_virl must not be imported before this line, or its annotations would go unchecked.
install_import_hook("gp_virl", "tests.typecheck.checked")

settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,  # the first example of a jitted function pays for its compilation
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
settings.load_profile("deterministic")


def pytest_collection_modifyitems(items: list) -> None:
    """Slow files first: of files that are shared out whole, the last decides when a run ends."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
