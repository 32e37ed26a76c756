"""Datasets, transformations, protocols and the tf.data pipelines made of them."""

from tfinv.data.dataset import Dataset
from tfinv.data.datasets import load_dataset
from tfinv.data.generation import make_pairs, pairs
from tfinv.data.pipeline import (
    batches,
    make_dataset,
    mapped,
    part_of,
    render,
    sample_parameters,
    scale_pixels,
)
from tfinv.data.protocol import (
    PROTOCOLS,
    Evaluation,
    Protocol,
    Range,
    Split,
    get_protocol,
    never_seen,
    seen_in_training,
    select,
)
from tfinv.data.shards import write_shards
from tfinv.data.stored import StoredImages, fingerprint

__all__ = [
    "PROTOCOLS",
    "Dataset",
    "Evaluation",
    "Protocol",
    "Range",
    "Split",
    "StoredImages",
    "batches",
    "fingerprint",
    "get_protocol",
    "load_dataset",
    "make_dataset",
    "make_pairs",
    "mapped",
    "never_seen",
    "pairs",
    "part_of",
    "render",
    "sample_parameters",
    "scale_pixels",
    "seen_in_training",
    "select",
    "write_shards",
]
