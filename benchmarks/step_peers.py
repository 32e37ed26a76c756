"""A training step of other libraries' capsule networks beside tfinv's: size, losses, then time.

    git clone --branch tf2.2 https://github.com/XifengGuo/CapsNet-Keras
    git clone https://github.com/gram-ai/capsule-networks
    git clone https://github.com/yl-1993/Matrix-Capsules-EM-PyTorch
    python benchmarks/step_peers.py --capsnet-keras CapsNet-Keras/capsulelayers.py \\
        --capsule-networks capsule-networks/capsule_network.py \\
        --matrix-capsules Matrix-Capsules-EM-PyTorch/model/capsules.py

The files are those of library_peers.py, which times the routed layers alone; what else a network takes is
found in the same clone. Wants tf-keras and PyTorch. A step is forward, the library's own loss, backward and
Adam, on one random batch of 28x28 images of ten classes. Before anything is timed, both networks have to have
the same number of parameters, but for a difference that is explained, and both losses have to be finite and
to fall. The first two peers are the CapsNet of the paper with its decoder. The third is the matrix capsules
of the paper in the article's sizes and without a decoder; it pads the images, so tfinv gets them padded.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import library_peers  # first: it says which Keras the peers get
import numpy as np
import pandas as pd
import tyro
from library_peers import files, load, load_torch
from measuring import interleaved
from rich.console import Console
from rich.table import Table
from routing_peers import DYNAMIC, EM
from training_step import step, whole

CLASSES = 10
STEPS = 5  # in which a loss has to fall
Network = tuple[Callable[[], float], int]  # what makes a step and returns the loss, and its parameters


@dataclass(frozen=True)
class Config(library_peers.Config):
    """Time of a training step of the capsule networks of other libraries."""

    batch: int = 0
    """Images of a batch; 0 for that of the article, 100 or, with matrix capsules, 50."""


def one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[labels]


def tensors(images: np.ndarray, labels: np.ndarray) -> tuple:
    """A batch for PyTorch, which wants the channels before the pixels."""
    import torch

    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)


def keras_network(model, data) -> Network:
    return step(model, data), sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def torch_network(model, loss: Callable) -> Network:
    import torch

    optimizer = torch.optim.Adam(model.parameters())

    def run() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.item()

    return run, sum(value.numel() for value in model.parameters() if value.requires_grad)


def capsnet_keras(path: Path, images: np.ndarray, labels: np.ndarray, seed: int) -> Network:
    import tensorflow as tf

    tf.keras.utils.set_random_seed(seed)
    module = load(path.with_name("capsulenet.py"))
    model = module.CapsNet(images.shape[1:], CLASSES, DYNAMIC.iterations, len(images))[0]
    model.compile("adam", [module.margin_loss, "mse"], loss_weights=[1.0, 0.392])
    true = one_hot(labels)
    return keras_network(model, ((images, true), (true, images)))


def capsule_networks(path: Path, images: np.ndarray, labels: np.ndarray, seed: int) -> Network:
    import torch

    torch.manual_seed(seed)
    module = load_torch(path)
    model, loss = module.CapsuleNet(), module.CapsuleLoss()
    # It wants a view of a product, and when it was written all were contiguous: this one is, of such poses.
    model.digit_capsules.register_forward_hook(
        lambda layer, inputs, poses: poses.transpose(0, 1).contiguous().transpose(0, 1)
    )
    inputs, true = tensors(images, one_hot(labels))
    return torch_network(model, lambda: loss(inputs, true, *model(inputs, true)))


def matrix_capsules(path: Path, images: np.ndarray, labels: np.ndarray, seed: int) -> Network:
    import torch

    from tfinv import models

    torch.manual_seed(seed)
    article = models.get_preset("em_capsnet", "article").model
    sizes = (article.conv_filters, article.primary_channels, *article.capsule_channels)
    model = load_torch(path).capsules(**dict(zip("ABCD", sizes, strict=True)), E=CLASSES, iters=EM.iterations)
    loss = load_torch(path.parents[1] / "loss/spread_loss.py").SpreadLoss(num_class=CLASSES)
    inputs, true = tensors(images, labels)
    return torch_network(model, lambda: loss(model(inputs), true, 0.0))  # the margin of the first step


@dataclass(frozen=True)
class Peer:
    """A library's network, and tfinv's that is held against it."""

    make: Callable[[Path, np.ndarray, np.ndarray, int], Network]
    package: str
    network: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Of the article's configuration of tfinv's network."""
    padding: int = 0
    """Pixels that the peer's first convolution adds at each edge of an image, and tfinv's does not."""
    more: int = 0
    """Parameters that tfinv's network has more, because of `why`."""
    why: str = ""


PEERS = {
    "capsnet_keras": Peer(capsnet_keras, "tf-keras", "capsnet"),
    "capsule_networks": Peer(capsule_networks, "torch", "capsnet"),
    "matrix_capsules": Peer(
        matrix_capsules,
        "torch",
        "em_capsnet",
        {"variant": "hinton2018", "decoder_units": ()},  # the article's has a beta_u a component
        padding=2,
        more=2 * (1 - 32),
        why="it normalises the image instead of 32 maps",
    ),
}


def networks(name: str, path: Path, batch: int, seed: int) -> dict[str, Network]:
    """The peer's and tfinv's, on the same random batch."""
    peer, rng = PEERS[name], np.random.default_rng(seed)
    images = rng.random((batch, 28, 28, 1), dtype=np.float32)
    labels = rng.integers(0, CLASSES, batch)
    edges = (peer.padding, peer.padding)
    padded = np.pad(images, ((0, 0), edges, edges, (0, 0)))
    changes = {"implementation": "fused", **peer.changes}
    model, adapt = whole(peer.network, CLASSES, seed, padded.shape[1], **changes)
    ours = keras_network(model, adapt(padded, labels.astype(np.int32)))
    return {"tfinv": ours, name: peer.make(path, images, labels, seed)}


def check(name: str, found: dict[str, Network]) -> None:
    """Prints sizes and losses; exits if the sizes differ unexplained, or a loss does not fall."""
    peer = PEERS[name]
    ours, theirs = found["tfinv"][1], found[name][1]
    print(f"{name}: {theirs:,} parameters; tfinv: {ours:,}{peer.why and ', for '}{peer.why}")
    if ours - theirs != peer.more:
        sys.exit(f"{name}: a difference of {peer.more} was expected; nothing is timed.")
    for who, (run, _) in found.items():
        losses = [run() for _ in range(STEPS)]
        print(f"{name}: losses of {who} {', '.join(f'{loss:.6f}' for loss in losses)}")
        if not (np.isfinite(losses).all() and losses[-1] < losses[0]):
            sys.exit(f"{name}: the loss of {who} does not fall; nothing is timed.")


def measure(name: str, path: Path, config: Config) -> list[dict]:
    from tfinv import models

    peer = PEERS[name]
    batch = config.batch or models.get_preset(peer.network, "article").training.batch_size
    found = networks(name, path, batch, config.seed)
    check(name, found)
    common = {"peer": name, "version": f"{peer.package} {version(peer.package)}", "batch": batch}
    rows = []
    for number, who, seconds in interleaved({who: run for who, (run, _) in found.items()}, config.rounds):
        row = {**common, "who": who, "parameters": found[who][1], "round": number, "seconds": seconds}
        rows.append(row)
    return rows


def main(config: Config) -> None:
    frame = pd.DataFrame([row for name, path in files(config).items() for row in measure(name, path, config)])
    table = Table("peer", "its ms", "tfinv's ms", "times", "its size", "tfinv's", "with")
    for name, group in frame.groupby("peer", sort=False):
        seconds = group.groupby("who")["seconds"].median()
        sizes = group.groupby("who")["parameters"].first()
        times = f"{seconds[name] / seconds['tfinv']:.1f}"
        milliseconds = [f"{seconds[who] * 1e3:.0f}" for who in (name, "tfinv")]
        counts = [f"{sizes[who]:,}" for who in (name, "tfinv")]
        table.add_row(str(name), *milliseconds, times, *counts, group["version"].iloc[0])
    Console().print(table)
    if config.csv:
        frame.to_csv(config.csv, index=False, float_format="%.6g")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
