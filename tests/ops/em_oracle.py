"""EM routing problems, an oracle that solves them in plain formulas, and the routing to compare with it."""

import numpy as np
from keras import ops

from tests.backend import tensor
from tfinv.ops import em_routing, em_routing_from_votes
from tfinv.ops.em_reference import VARIANCE_FLOOR

# With one that is not small, activations are far from 1/2 and costs decide.
WARM = 0.4


def oracle(
    votes,
    activations,
    beta_u,
    beta_a,
    iterations,
    variant,
    bias=None,
    final=WARM,
    floor=VARIANCE_FLOOR,
):
    """Procedure 1 of the paper in plain float64 formulas, a sample and a parent at a time.

    Takes votes [B, I, J, H] and beta_u [J, H]; returns (poses, activations) after each iteration.
    """
    batch, children, parents, components = votes.shape
    poses = np.zeros((iterations, batch, parents, components))
    active = np.zeros((iterations, batch, parents))
    for b in range(batch):
        prior = np.exp(np.zeros((children, parents)) if bias is None else bias)
        coupling = prior / prior.sum(axis=1, keepdims=True)
        for t in range(iterations):
            shares = coupling * np.maximum(activations[b], 1e-12)[:, np.newaxis]
            temperature = final * (1 - 0.95 ** (t + 1))
            if variant == "article":
                shares = shares / shares.sum(axis=1, keepdims=True)
                temperature = final
            logits, densities = np.zeros(parents), np.zeros((children, parents))
            for j in range(parents):
                total = shares[:, j].sum()
                mean = shares[:, j] @ votes[b, :, j] / total
                variance = shares[:, j] @ (votes[b, :, j] - mean) ** 2 / total + floor
                costs = (beta_u[j] + np.log(np.sqrt(variance))) * total
                logits[j] = temperature * (beta_a[j] - costs.sum())
                poses[t, b, j] = mean
                for i in range(children):
                    exponent = np.sum((votes[b, i, j] - mean) ** 2 / (2 * variance))
                    densities[i, j] = np.exp(-exponent) / np.sqrt(np.prod(2 * np.pi * variance))
            if variant == "article":
                active[t, b] = np.exp(logits) / np.exp(logits).sum()
            else:
                active[t, b] = 1 / (1 + np.exp(-logits))
            posterior = active[t, b] * densities
            coupling = posterior / posterior.sum(axis=1, keepdims=True)
    return list(zip(poses, active, strict=True))


def all_votes(poses, weights):
    votes = np.einsum("bipq,ijqr->bijpr", poses.astype(np.float64), weights.astype(np.float64))
    return votes.reshape(*votes.shape[:3], -1)


def problem(shape, seed=0):
    """Random poses, activations, weights, beta_u [J, P, P], beta_a and bias; votes of a deviation near 1."""
    batch, children, parents, size = shape
    random = np.random.default_rng(seed)
    return {
        "poses": random.normal(size=(batch, children, size, size)),
        "activations": random.uniform(0.05, 0.95, (batch, children)),
        "weights": random.normal(size=(children, parents, size, size)) / np.sqrt(size),
        "beta_u": random.normal(size=(parents, size, size)),
        "beta_a": random.normal(size=parents),
        "bias": random.normal(size=(children, parents)),
    }


def expected_of(values, iterations, variant, biased=True, **rest):
    """The oracle's results for a `problem`, poses as matrices [B, J, P, P]."""
    parents, size = values["weights"].shape[1:3]
    results = oracle(
        all_votes(values["poses"], values["weights"]),
        values["activations"],
        values["beta_u"].reshape(parents, -1),
        values["beta_a"],
        iterations,
        variant,
        values["bias"] if biased else None,
        **rest,
    )
    return [(poses.reshape(-1, parents, size, size), active) for poses, active in results]


def route(values, iterations, variant, biased=True, final=WARM, dtype="float32", **rest):
    given = {name: tensor(value, dtype) for name, value in values.items() if name != "bias" or biased}
    return em_routing(
        **given, num_iterations=iterations, variant=variant, final_inverse_temperature=final, **rest
    )


def route_votes(values, iterations, variant, biased=True, final=WARM, dtype="float32", **rest):
    given = {name: tensor(value, dtype) for name, value in values.items() if name != "bias" or biased}
    poses, weights = given.pop("poses"), given.pop("weights")
    batch, children, size, _ = poses.shape
    parents = weights.shape[1]
    votes = ops.einsum("bipq,ijqr->bijpr", poses, weights)
    given["votes"] = ops.reshape(votes, (batch, children, parents, size * size))
    given["beta_u"] = ops.reshape(given["beta_u"], (parents, size * size))
    poses, activations = em_routing_from_votes(
        **given, num_iterations=iterations, variant=variant, final_inverse_temperature=final, **rest
    )
    return ops.reshape(poses, (batch, parents, size, size)), activations
