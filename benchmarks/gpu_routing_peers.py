"""What benchmarks/gpu_routing.py compares: routing problems, and the ways to compute them.

Each way takes the arrays of a problem and returns a list of outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FINAL_TEMPERATURE, FLOOR = 0.01, 1e-2


@dataclass(frozen=True)
class Case:
    """A routing problem; EM if `variant` is set, with child_dim the edge of a pose."""

    batch: int
    children: int
    parents: int
    child_dim: int
    parent_dim: int
    iterations: int
    variant: str = ""
    biased: bool = False

    @property
    def name(self) -> str:
        sizes = f"B{self.batch}-I{self.children}-J{self.parents}"
        sizes += f"-P{self.child_dim}" if self.variant else f"-K{self.child_dim}-D{self.parent_dim}"
        return f"{self.variant or 'dynamic'}-{sizes}-r{self.iterations}" + ("-bias" if self.biased else "")


TIMED = [
    Case(100, 1152, 10, 8, 16, 3),
    Case(1250, 72, 16, 4, 4, 2, "hinton2018"),
    Case(1250, 288, 32, 4, 4, 2, "hinton2018"),
]
TIMED_SMALL = [Case(10, 64, 10, 8, 16, 3), Case(25, 18, 16, 4, 4, 2, "hinton2018")]
# Ones, primes, both sides of a warp of parents, tiles full and not, kernels of fixed and of any size, a batch
# above 65,535.
DYNAMIC = [(1, 1, 1, 1, 1), (3, 5, 10, 8, 16), (129, 7, 32, 8, 16), (13, 9, 33, 8, 16), (2, 70, 129, 8, 16)]
DYNAMIC += [
    (7, 129, 7, 7, 1),
    (5, 33, 10, 129, 2),
    (2, 5, 40, 2, 129),
    (33, 9, 10, 8, 16),
    (70_001, 2, 3, 8, 16),
    (100, 1152, 10, 8, 16),
]
EM = [
    (1, 1, 1, 1),
    (5, 7, 16, 4),
    (129, 3, 32, 4),
    (9, 12, 32, 4),
    (40, 9, 16, 4),
    (13, 9, 33, 4),
    (2, 129, 5, 3),
    (7, 5, 40, 2),
    (3, 4, 2, 7),
]
EM += [(70_001, 2, 3, 4), (125, 72, 16, 4)]
SMALL = 100_000  # votes of a case that a sanitizer, or a rehearsal, can take


def parity_cases(small: bool) -> list[Case]:
    cases = []
    for index, sizes in enumerate(DYNAMIC):
        cases += [Case(*sizes, iterations, biased=(index + iterations) % 2 == 0) for iterations in (1, 3)]
    for index, (batch, children, parents, size) in enumerate(EM):
        for iterations, variant in ((3, "hinton2018"), (2, "article")):
            biased = (index + iterations) % 2 == 0
            cases.append(Case(batch, children, parents, size, size, iterations, variant, biased))
    return [case for case in cases if not small or case.batch * case.children * case.parents * 16 <= SMALL]


def arrays_of(case: Case, seed: int = 0) -> list:
    """Inputs that are differentiated, as float32 NumPy arrays."""
    random = np.random.default_rng(seed)
    pose = (case.child_dim, case.child_dim) if case.variant else (case.child_dim,)
    poses = random.normal(size=(case.batch, case.children, *pose))
    weights = random.normal(size=(case.children, case.parents, case.child_dim, case.parent_dim))
    weights /= (case.child_dim * (1 if case.variant else case.parent_dim)) ** 0.5
    arrays = [poses, weights]
    if case.variant:
        activations = random.uniform(0.05, 1.0, size=(case.batch, case.children))
        arrays = [poses, activations, weights, *random.normal(size=(2, case.parents))]
    if case.biased:
        arrays.append(random.normal(size=(case.children, case.parents)))
    return [value.astype(np.float32) for value in arrays]


# Routings: each returns a list of outputs


def fused(case: Case) -> Callable:
    from tfinv.ops import em_reference, fused_jax

    if not case.variant:
        return lambda poses, weights, bias=None: [
            fused_jax.dynamic_routing(poses, weights, case.iterations, bias)
        ]
    temperatures = em_reference.inverse_temperatures(case.variant, case.iterations, FINAL_TEMPERATURE)

    def route(poses, activations, weights, beta_u, beta_a, bias=None):
        summed = em_reference.summed_beta_u(beta_u, case.parents, case.child_dim**2)
        return list(
            fused_jax.em_routing(
                poses, activations, weights, summed, beta_a, temperatures, case.variant, FLOOR, bias
            )
        )

    return route


def votes_form(case: Case) -> Callable:
    """The reference of tfinv, which makes the votes [B, J, I, D] by one matrix product."""
    from tfinv.ops import em_reference, reference

    if not case.variant:
        return lambda poses, weights, bias=None: [
            reference.dynamic_routing(poses, weights, case.iterations, bias)
        ]

    def route(poses, activations, weights, beta_u, beta_a, bias=None):
        settings = (case.iterations, case.variant, bias, FINAL_TEMPERATURE, FLOOR)
        return list(em_reference.em_routing(poses, activations, weights, beta_u, beta_a, *settings))

    return route


def torch_form(case: Case) -> Callable:
    """The straightforward votes form in PyTorch; hinton2018 or dynamic, without bias."""
    import torch

    from tfinv.ops import em_reference

    def squash(sums):
        squared = (sums * sums).sum(-1, keepdim=True)
        return sums * squared.sqrt() / (1 + squared)

    def dynamic(poses, weights):
        votes = torch.einsum("bik,ijkd->bijd", poses, weights)
        logits = torch.zeros(votes.shape[:3], device=votes.device)
        for iteration in range(case.iterations):
            outputs = squash(torch.einsum("bij,bijd->bjd", logits.softmax(2), votes))
            if iteration + 1 < case.iterations:
                logits = logits + torch.einsum("bijd,bjd->bij", votes, outputs)
        return [outputs]

    temperatures = em_reference.inverse_temperatures("hinton2018", case.iterations, FINAL_TEMPERATURE)

    def em(poses, activations, weights, beta_u, beta_a):
        size = case.child_dim
        votes = torch.einsum("bipq,ijqr->bijpr", poses, weights).flatten(3)
        logr = torch.full(votes.shape[:3], 1.0 / case.parents, device=votes.device).log()
        for iteration, temperature in enumerate(temperatures):
            logw = logr + activations.clamp(min=1e-12).log()[..., None]
            logmass = logw.logsumexp(1)
            rho = (logw - logmass[:, None]).exp()
            means = torch.einsum("bij,bijh->bjh", rho, votes)
            squares = (votes - means[:, None]) ** 2
            variances = torch.einsum("bij,bijh->bjh", rho, squares) + FLOOR
            half = variances.log().sum(-1) / 2
            x = temperature * (beta_a - logmass.exp() * (size * size * beta_u + half))
            loga = torch.nn.functional.logsigmoid(x)
            if iteration + 1 < case.iterations:
                distances = torch.einsum("bijh,bjh->bij", squares, 1 / variances)
                logr = ((loga - half)[:, None] - distances / 2).log_softmax(2)
        return [means.reshape(-1, case.parents, size, size), loga.exp()]

    return em if case.variant else dynamic


def factors_of(case: Case) -> list:
    """Gradients of the outputs, as float32 NumPy arrays."""
    random = np.random.default_rng(7)
    pose = (case.child_dim,) * 2 if case.variant else (case.parent_dim,)
    shapes = [(case.batch, case.parents, *pose)] + ([(case.batch, case.parents)] if case.variant else [])
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def both_ways(route: Callable) -> Callable:
    """Outputs and every gradient of a JAX routing, as one function of arrays and factors."""
    import jax

    def run(arrays, factors):
        outputs, backward = jax.vjp(lambda *values: route(*values), *arrays)
        return [*outputs, *backward(list(factors))]

    return run


# Peers: (starts a call, waits for what it returned)

PEERS = ("fused", "xla", "xla-tf32", "torch.compile")


def jax_peer(case: Case, route: Callable, device, backward: bool) -> tuple[Callable, Callable]:
    import jax

    arrays = [jax.device_put(value, device) for value in arrays_of(case)]
    factors = [jax.device_put(value, device) for value in factors_of(case)]
    function = both_ways(route) if backward else (lambda arrays, _: route(*arrays))
    compiled = jax.jit(function).lower(arrays, factors).compile()
    return lambda: compiled(arrays, factors), jax.block_until_ready


def torch_peer(case: Case, device: str, backward: bool) -> tuple[Callable, Callable]:
    import torch

    torch.set_float32_matmul_precision("highest")
    arrays = [torch.tensor(value, device=device, requires_grad=backward) for value in arrays_of(case)]
    factors = [torch.tensor(value, device=device) for value in factors_of(case)]
    compiled = torch.compile(torch_form(case))

    def start():
        outputs = compiled(*arrays)
        return [*outputs, *torch.autograd.grad(outputs, arrays, factors)] if backward else outputs

    def wait(values):
        if device == "cuda":
            torch.cuda.synchronize()
        return values

    return start, wait


def peers_of(case: Case, device, backward: bool, only: str = "") -> dict:
    import jax

    def xla(precision):
        def route(*values):
            with jax.default_matmul_precision(precision):
                return votes_form(case)(*values)

        return lambda: jax_peer(case, route, device, backward)

    makers = {
        "fused": lambda: jax_peer(case, fused(case), device, backward),
        "xla": xla("highest"),
        "xla-tf32": xla("default"),
        "torch.compile": lambda: torch_peer(case, "cpu" if device.platform == "cpu" else "cuda", backward),
    }
    peers = {}
    for name, make in makers.items():
        if only and name != only:
            continue
        try:
            peers[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return peers
