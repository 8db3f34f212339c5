"""Settings of all tests: checked shapes, eight CPU devices, no silent rank promotion, and where the data lies."""

from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

# Every array in a call of the core is checked against the shapes in the annotations. Users do not pay for that.
install_import_hook([f"jdiff.{name}" for name in ("combine", "sample", "scan", "step", "views")], "shapes.check")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

MOST_MAPS = 25_000
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="module", autouse=True)
def programs():
    """Frees all compiled programs if there are many.

    Each takes three memory maps. A process may have 65,530 (Linux's vm.max_map_count), and crashes if it needs more.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture
def x64():
    """float64 within one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def data():
    """Folder of the training data; tests that need it are skipped where it is not."""
    if not DATA.is_dir():
        pytest.skip(f"no training data at {DATA.name}/ beside the checkout")
    return DATA
