"""A safetensors file and an adapter config, as bytes from a stranger."""

import atheris

with atheris.instrument_imports(include=["lamina"]):
    from lamina.bases.header import HeaderError, check_bytes
    from lamina.core.errors import LayerError
    from lamina.lowrank import codec

import safetensors.torch

from tests.fuzz.driver import fuzz
from tests.fuzz.seeds import ADAPTER_CONFIG, HEADERS

CONFIG_BYTES = 300


def read(data: bytes) -> None:
    """What our header check lets through the library must read, with the same shapes."""
    header, _, rest = data.partition(b"\n\n")
    for each in (data, len(header).to_bytes(8, "little") + header + rest):
        read_weights(each)
    codec.decode(data[:CONFIG_BYTES].rstrip(b"\0"), data[CONFIG_BYTES:])


def read_weights(data: bytes) -> None:
    try:
        entries = check_bytes(data)
    except HeaderError:
        entries = None
    if entries is not None:
        loaded = safetensors.torch.load(data)
        assert {e.name: e.shape for e in entries} == {
            name: tuple(tensor.shape) for name, tensor in loaded.items()
        }
        try:
            codec.decode(ADAPTER_CONFIG, data)
        except LayerError:
            return


if __name__ == "__main__":
    fuzz(read, HEADERS)
