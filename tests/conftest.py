from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("lamina", deadline=None)  # machines differ in speed, and are shared
settings.load_profile("lamina")

pytest_plugins = ["tests.made"]
BESIDE = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def pytest_addoption(parser):
    parser.addoption(
        "--data", type=Path, default=None, help="folder of real data sets; its tests skip without"
    )


@pytest.fixture(scope="session")
def real_data(request):
    """The folder of real data sets: --data, or the one beside the repository."""
    folder = request.config.getoption("--data") or BESIDE
    if not folder.is_dir():
        pytest.skip(f"no folder of real data sets at {folder}; name one with --data")
    return folder
