"""The idx format of the original MNIST; the checksums of a dataset are those of its idx files."""

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import numpy as np

# File names of the four arrays.
IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


class DamagedError(Exception):
    """Something is there, but not the dataset; the user is warned and the next source is tried."""


def idx_md5(array: np.ndarray) -> str:
    """Returns the md5 of a uint8 array as an uncompressed idx file.

    Raises:
        ValueError: If the array is not uint8.
    """
    if array.dtype != np.uint8:
        raise ValueError(f"Invalid array. Expected uint8. Received: dtype={array.dtype}")
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    # Not for security: it tells damage from the published file, and works on FIPS systems.
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def parse_idx(content: bytes, origin: str) -> np.ndarray:
    """Decodes an uncompressed idx file of unsigned bytes; `origin` names it in the message.

    Raises:
        DamagedError: If the header is wrong or the length does not fit it.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise DamagedError(f"{origin} is not an idx file of unsigned bytes")
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape))
    if body.size != int(np.prod(shape, dtype=object)):
        raise DamagedError(f"{origin} holds {body.size} bytes; its header promises shape {shape}")
    return body.reshape(shape)


def read_idx(path: Path) -> np.ndarray:
    """Reads an idx file of unsigned bytes, plain or .gz.

    Raises:
        DamagedError: If it cannot be read or is not such a file.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DamagedError(f"{path} cannot be read ({error})") from error
    return parse_idx(content, str(path))
