import pytest

from lamina.core.errors import TrainError, TrainInterrupted
from lamina.core.report import Silent
from lamina.data.read import read
from lamina.flows.draw import build as build_into
from lamina.store.layout import Store
from lamina.train.building import Length
from lamina.train.tiny_diffusion import build
from tests.pictures import PICO, image_zip, shapes

STEPS = 5


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return read([image_zip(tmp_path_factory.mktemp("data") / "shapes.zip", shapes())]).examples


def built(images, folder, work, stop_after=None, length=None):
    """Build; where `stop_after` is given, ask for an end after so many steps of this sitting."""
    seen = []

    def report(stage, step, share, loss):
        seen.append((stage, step))

    build(
        images,
        folder,
        PICO,
        length or Length(None, STEPS),
        work=work,
        report=report,
        should_stop=lambda: stop_after is not None and len(seen) >= stop_after,
    )
    return seen


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("stop_after", [0, 2, STEPS, STEPS + 3])
def test_a_build_that_is_stopped_ends_with_the_same_bytes(images, tmp_path, stop_after):
    built(images, tmp_path / "whole", tmp_path / "a")
    with pytest.raises(TrainInterrupted, match="what is done is kept"):
        built(images, tmp_path / "cut", tmp_path / "b", stop_after)
    assert not (tmp_path / "cut").exists()
    after = built(images, tmp_path / "cut", tmp_path / "b")
    assert len(after) == 2 * STEPS - stop_after  # no step is taken twice
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_minutes_count_over_all_sittings(images, tmp_path):
    length = Length(minutes=0.05)
    with pytest.raises(TrainInterrupted):
        built(images, tmp_path / "cut", tmp_path / "work", 3, length)
    again = built(images, tmp_path / "cut", tmp_path / "work", None, length)
    assert again[0] == ("autoencoder", 4)


def test_a_state_that_is_damaged_is_told(images, tmp_path):
    with pytest.raises(TrainInterrupted):
        built(images, tmp_path / "cut", tmp_path / "work", 2)
    path = tmp_path / "work" / "autoencoder.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(TrainError, match="damaged"):
        built(images, tmp_path / "cut", tmp_path / "work")


def test_the_command_goes_on_and_leaves_nothing(images, tmp_path):
    store = Store.open(tmp_path / "store")
    data = image_zip(tmp_path / "shapes.zip", shapes())
    asked = {"minutes": 1.0, "steps": 2, "seed": 0, "side": 16, "licence": None}
    calls = iter(range(100))

    def command(stop):
        return build_into(
            store, "tiny-diffusion", [data], "tiny", Silent(), **asked, should_stop=stop
        )

    with pytest.raises(TrainInterrupted):
        command(lambda: next(calls) >= 1)
    assert store.bases() == {} or "tiny" not in store.bases()
    kept = list((store.cache_dir / "builds").iterdir())
    assert len(kept) == 1
    assert [path.name for path in kept[0].iterdir()] == ["autoencoder.safetensors"]
    command(lambda: False)
    assert "tiny" in store.bases()
    assert list((store.cache_dir / "builds").iterdir()) == []
