"""The routed layers of other capsule libraries beside tfinv's fused ones: correctness, then time and memory.

    python benchmarks/library_peers.py --capsnet-keras CapsNet-Keras/capsulelayers.py \\
        --capsule-networks capsule-networks/capsule_network.py \\
        --matrix-capsules Matrix-Capsules-EM-PyTorch/model/capsules.py

Their code is read from your own clones: github.com/XifengGuo/CapsNet-Keras (branch tf2.2, under the package
tf-keras), github.com/gram-ai/capsule-networks and github.com/yl-1993/Matrix-Capsules-EM-PyTorch (PyTorch).
Each call routes forward and backward to the gradient of every input. Before anything is timed a peer has to
compute what tfinv does, as far as it claims to: the second takes the softmax over the children, not the
parents, and the third another output activation, so these two are held to one iteration, where neither shows.
docs/performance.md has what was measured.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # the peers' tf.keras; tfinv imports Keras 3 by its own name

import numpy as np
import pandas as pd
import tyro
from measuring import alone, interleaved, peak_of
from rich.console import Console
from rich.table import Table
from routing_peers import DYNAMIC, EM, Problem, compiled

TOLERANCE = 1e-3  # of the largest entry; float32 sums in different orders
Call = Callable[[], list[np.ndarray]]


@dataclass(frozen=True)
class Config:
    """Time and memory of the routed layers of other libraries, forward and backward."""

    capsnet_keras: Path | None = None
    """capsulelayers.py of CapsNet-Keras."""
    capsule_networks: Path | None = None
    """capsule_network.py of capsule-networks."""
    matrix_capsules: Path | None = None
    """model/capsules.py of Matrix-Capsules-EM-PyTorch."""
    rounds: int = 9
    """Interleaved rounds that are counted; one more goes before them."""
    csv: Path | None = None
    """File for the rounds."""
    seed: int = 0


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    if spec is None or spec.loader is None:
        sys.exit(f"Not a Python file: {path}")
    sys.path.append(str(path.parent))  # what it imports from its own clone
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_torch(path: Path) -> ModuleType:
    """A peer under PyTorch, kept on the CPU: they make their constants on a GPU."""
    import torch

    torch.cuda.FloatTensor = torch.FloatTensor
    torch.Tensor.cuda = lambda tensor: tensor
    module = load(path)
    module.__dict__.setdefault("Variable", lambda tensor: tensor)  # capsule_network.py, run, imports it
    return module


def tfinv_call(problem: Problem, seed: int) -> Call:
    import tensorflow as tf

    from tfinv import ops

    if problem.kind == "dynamic":
        run, inputs = compiled("fused", problem), problem.inputs(seed)
        return lambda: [value.numpy() for value in run(*inputs)]
    inputs = problem.inputs(seed)

    @tf.function
    def run_em(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            # The peer normalises the coupling as the article's variant does.
            means, active = ops.em_routing(
                *inputs, problem.iterations, variant="article", implementation="fused"
            )
            loss = tf.reduce_sum(means * tf.cos(means)) + tf.reduce_sum(active * tf.cos(active))
        return means, *tape.gradient(loss, inputs)

    return lambda: [value.numpy() for value in run_em(*inputs)]


def capsnet_keras(path: Path, problem: Problem, seed: int) -> Call:
    import tensorflow as tf

    poses, weights = problem.inputs(seed)
    layer = load(path).CapsuleLayer(problem.parents, problem.parent_dim, problem.iterations)
    layer.build(poses.shape)
    layer.W.assign(tf.transpose(weights, (1, 0, 3, 2)))  # [I, J, K, D] to [J, I, D, K]

    @tf.function
    def run(poses):
        with tf.GradientTape() as tape:
            tape.watch(poses)
            outputs = layer(poses)
            loss = tf.reduce_sum(outputs * tf.cos(outputs))
        return outputs, *tape.gradient(loss, (poses, layer.W))

    return lambda: [value.numpy() for value in run(poses)]


def capsule_networks(path: Path, problem: Problem, seed: int) -> Call:
    import torch

    poses, weights = (torch.from_numpy(value.numpy()) for value in problem.inputs(seed))
    sizes = (problem.parents, problem.children, problem.child_dim, problem.parent_dim)
    layer = load_torch(path).CapsuleLayer(*sizes, num_iterations=problem.iterations)
    layer.route_weights.data = weights.permute(1, 0, 2, 3).contiguous()  # [J, I, K, D]

    def run():
        inputs = poses.clone().requires_grad_()
        outputs = layer(inputs)[:, :, 0, 0].transpose(0, 1)
        gradients = torch.autograd.grad((outputs * torch.cos(outputs)).sum(), (inputs, layer.route_weights))
        return [value.detach().numpy() for value in (outputs, *gradients)]

    return run


def matrix_capsules(path: Path, problem: Problem, seed: int) -> Call:
    import torch

    values = (torch.from_numpy(value.numpy()) for value in problem.inputs(seed))
    poses, activations, weights, beta_u, beta_a = values
    edge, count = problem.child_dim, problem.children // 9
    layer = load_torch(path).ConvCaps(count, problem.parents, 3, edge, iters=problem.iterations)
    layer.weights.data, layer.beta_u.data, layer.beta_a.data = weights[None], beta_u, beta_a

    def run():
        inputs = poses.clone().requires_grad_(), activations.clone().requires_grad_()
        votes = layer.transform_view(inputs[0].flatten(2), layer.weights, problem.parents, edge)
        means, active = layer.caps_em_routing(votes, inputs[1][..., None], problem.parents, layer.eps)
        loss = (means * torch.cos(means)).sum() + (active * torch.cos(active)).sum()
        gradients = torch.autograd.grad(loss, (*inputs, layer.weights, layer.beta_u, layer.beta_a))
        return [
            value.detach().numpy() for value in (means.reshape(-1, problem.parents, edge, edge), *gradients)
        ]

    return run


# Peer: the function that calls it, the size, its package, and the iterations at which it computes the same.
PEERS = {
    "capsnet_keras": (capsnet_keras, DYNAMIC, "tf-keras", DYNAMIC.iterations),
    "capsule_networks": (capsule_networks, DYNAMIC, "torch", 1),
    "matrix_capsules": (matrix_capsules, EM, "torch", 1),
}


def check(name: str, path: Path, seed: int) -> float:
    """The largest difference of the outputs, relative to the largest entry; exits if it is too large."""
    make, problem, _, iterations = PEERS[name]
    problem = replace(problem, iterations=iterations)
    found, expected = (call()[0] for call in (make(path, problem, seed), tfinv_call(problem, seed)))
    if name == "capsule_networks":  # a coupling of 1 / I, not 1 / J: the direction is the same
        found, expected = (
            value / np.linalg.norm(value, axis=-1, keepdims=True) for value in (found, expected)
        )
    gap = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not gap <= TOLERANCE:
        sys.exit(f"{name} does not compute what tfinv does (difference {gap:.1e}); nothing is timed.")
    return gap


def peak(name: str, path: Path | None, problem: Problem, seed: int) -> int:
    """Peak resident memory of the second call above what the process held before it, in bytes."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # its allocator keeps what it had: no peak would show
    call = PEERS[name][0](path, problem, seed) if path else tfinv_call(problem, seed)
    return peak_of(call, name if path else "fused")[0]


def measure(name: str, path: Path, config: Config) -> list[dict]:
    make, problem, package, _ = PEERS[name]
    gap = alone(check, name, path, config.seed)
    calls = {"tfinv": tfinv_call(problem, config.seed), name: make(path, problem, config.seed)}
    memory = {who: alone(peak, name, path if who == name else None, problem, config.seed) for who in calls}
    rows = []
    for number, who, seconds in interleaved(calls, config.rounds):
        row = {"peer": name, "who": who, "version": f"{package} {version(package)}", "round": number}
        rows.append({**row, "seconds": seconds, "peak_bytes": memory[who], "difference": gap})
    return rows


def files(config: Config) -> dict[str, Path]:
    """The file of each peer that is named; exits if there is none, or one that does not exist."""
    paths = {name: getattr(config, name) for name in PEERS if getattr(config, name)}
    if not paths:
        sys.exit("Name the file of at least one peer; --help says which.")
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        sys.exit(f"No such file: {', '.join(missing)}")
    return {name: path.resolve() for name, path in paths.items()}


def main(config: Config) -> None:
    frame = pd.DataFrame([row for name, path in files(config).items() for row in measure(name, path, config)])
    table = Table("peer", "its ms", "tfinv's ms", "times", "its MiB", "tfinv's MiB", "with")
    for name, group in frame.groupby("peer", sort=False):
        seconds = group.groupby("who")["seconds"].median()
        memory = group.groupby("who")["peak_bytes"].first() / 2**20
        cells = [seconds[name] * 1e3, seconds["tfinv"] * 1e3, seconds[name] / seconds["tfinv"]]
        cells += [memory[name], memory["tfinv"]]
        table.add_row(str(name), *(f"{cell:.1f}" for cell in cells), group["version"].iloc[0])
    Console().print(table)
    if config.csv:
        frame.to_csv(config.csv, index=False, float_format="%.6g")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
