"""The ways to compute a routing that `benchmarks/routing.py` compares, and the sizes it compares them at.

Each way is a function of a Problem's inputs; `compiled` makes one call of it, forward alone or with the
gradient of every input.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@dataclass(frozen=True)
class Problem:
    """One size of one routing; for EM, `child_dim` is the edge of a pose matrix and `parent_dim` unused."""

    kind: str  # "dynamic" or "em"
    batch: int
    children: int
    parents: int
    child_dim: int
    parent_dim: int
    iterations: int

    @property
    def votes_bytes(self) -> int:
        components = self.parent_dim if self.kind == "dynamic" else self.child_dim**2
        return 4 * self.batch * self.children * self.parents * components

    def times(self, axis: str, factor: int) -> "Problem":
        return replace(self, **{axis: getattr(self, axis) * factor})

    def inputs(self, seed: int = 0) -> list:
        """Random float32 tensors: poses, weights or poses, activations, weights, beta_u, beta_a."""
        import tensorflow as tf

        rng = np.random.default_rng(seed)

        def normal(*shape, scale=1.0):
            return tf.constant(rng.standard_normal(shape, dtype=np.float32) * np.float32(scale))

        if self.kind == "dynamic":
            weights = normal(self.children, self.parents, self.child_dim, self.parent_dim, scale=0.1)
            return [normal(self.batch, self.children, self.child_dim, scale=0.3), weights]
        edge = (self.child_dim, self.child_dim)
        return [
            normal(self.batch, self.children, *edge),
            tf.sigmoid(normal(self.batch, self.children)),
            normal(self.children, self.parents, *edge),
            normal(self.parents),
            normal(self.parents),
        ]


# The sizes the targets are stated for; EM: ConvCaps1 of the article's network, and the paper's A=B=C=D=32.
DYNAMIC = Problem("dynamic", 100, 1152, 10, 8, 16, 3)
EM = Problem("em", 50 * 25, 72, 16, 4, 0, 2)
EM_WIDE = Problem("em", 50 * 25, 288, 32, 4, 0, 2)
# Users of other libraries report 25 GB at this size: four tensors like the votes.
HUGE = Problem("dynamic", 128, 3872, 196, 8, 16, 3)


def fused(problem: Problem) -> Callable:
    """tfinv's custom op."""
    from tfinv import ops

    if problem.kind == "dynamic":
        return lambda *inputs: ops.dynamic_routing(*inputs, problem.iterations, implementation="fused")
    return lambda *inputs: ops.em_routing(*inputs, problem.iterations, implementation="fused")


def matmul(problem: Problem) -> Callable:
    """tfinv's reference: votes with the children innermost but one, every step a batched matmul."""
    from tfinv import ops

    if problem.kind == "dynamic":
        return lambda *inputs: ops.dynamic_routing(*inputs, problem.iterations, implementation="reference")
    return lambda *inputs: ops.em_routing(*inputs, problem.iterations, implementation="reference")


def einsum(problem: Problem) -> Callable:
    """Each line of the papers as one einsum over votes [B, I, J, D]."""
    import tensorflow as tf

    def weigh(factors, votes):
        return tf.einsum("bij,bijd->bjd", factors, votes)

    def agree(votes, poses):
        return tf.einsum("bijd,bjd->bij", votes, poses)

    return _explicit(problem, weigh, agree)


def multiply_reduce(problem: Problem) -> Callable:
    """Products and sums written out: what a compiler that fuses loops, as XLA, needs no matmul for."""
    import tensorflow as tf

    def weigh(factors, votes):
        return tf.reduce_sum(factors[..., None] * votes, axis=1)

    def agree(votes, poses):
        return tf.reduce_sum(votes * poses[:, None], axis=-1)

    return _explicit(problem, weigh, agree)


def _explicit(problem: Problem, weigh: Callable, agree: Callable) -> Callable:
    import tensorflow as tf

    def dynamic(poses, weights):
        votes = tf.einsum("bik,ijkd->bijd", poses, weights)
        logits = tf.zeros(tf.shape(votes)[:3])
        for iteration in range(problem.iterations):
            sums = weigh(tf.nn.softmax(logits, axis=2), votes)
            squared = tf.reduce_sum(sums**2, axis=-1, keepdims=True)
            outputs = sums * tf.sqrt(squared) / (1.0 + squared)
            if iteration + 1 < problem.iterations:
                logits += agree(votes, outputs)
        return outputs

    def em(poses, activations, weights, beta_u, beta_a):
        from tfinv.ops import em_reference

        size = problem.child_dim**2
        votes = tf.einsum("bipm,ijmq->bijpq", poses, weights)
        votes = tf.reshape(votes, (-1, problem.children, problem.parents, size))
        coupling = tf.fill(tf.shape(votes)[:3], 1.0 / problem.parents)
        temperatures = em_reference.inverse_temperatures("hinton2018", problem.iterations, 0.01)
        for iteration, temperature in enumerate(temperatures):
            weight = coupling * activations[..., None]
            mass = tf.reduce_sum(weight, axis=1)
            rho = weight / mass[:, None]
            means = weigh(rho, votes)
            squares = (votes - means[:, None]) ** 2
            variances = weigh(rho, squares) + em_reference.VARIANCE_FLOOR
            log_variance = tf.reduce_sum(tf.math.log(variances), axis=-1)
            evidence = temperature * (beta_a - mass * (size * beta_u + 0.5 * log_variance))
            if iteration + 1 < problem.iterations:
                logits = -0.5 * (agree(squares, 1.0 / variances) + log_variance[:, None])
                coupling = tf.nn.softmax(logits + tf.math.log_sigmoid(evidence)[:, None], axis=2)
        edge = problem.child_dim
        return tf.reshape(means, (-1, problem.parents, edge, edge)), tf.sigmoid(evidence)

    return dynamic if problem.kind == "dynamic" else em


# name -> (the way, whether XLA compiles it)
PEERS: dict[str, tuple[Callable, bool]] = {
    "fused": (fused, False),
    "matmul (reference)": (matmul, False),
    "einsum": (einsum, False),
    "multiply-reduce": (multiply_reduce, False),
    "matmul, XLA": (matmul, True),
    "einsum, XLA": (einsum, True),
    "multiply-reduce, XLA": (multiply_reduce, True),
}


def compiled(peer: str, problem: Problem, backward: bool = True) -> Callable:
    """A call inputs -> flat list of outputs, then of the gradients of all inputs if `backward`."""
    import tensorflow as tf

    way, jit = PEERS[peer]
    function = way(problem)

    @tf.function(jit_compile=jit)
    def run(*inputs):
        with tf.GradientTape() as tape:
            if backward:
                tape.watch(inputs)
            outputs = tf.nest.flatten(function(*inputs))
        if not backward:
            return outputs
        # Given, the same for every peer: a loss would be a dozen more operations, which XLA alone fuses.
        rng = np.random.default_rng(1)
        gradients = [tf.constant(rng.standard_normal(output.shape, np.float32)) for output in outputs]
        return outputs + list(tape.gradient(outputs, inputs, output_gradients=gradients))

    return run


def largest_difference(found: list, expected: list) -> float:
    """Over all tensors, the largest difference relative to the largest entry of the tensor."""
    return max(
        float(np.max(np.abs(a.numpy() - b.numpy())) / np.max(np.abs(b.numpy())))
        for a, b in zip(found, expected, strict=True)
    )
