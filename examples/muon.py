"""
Scaling before Newton-Schulz: the Muon optimiser
================================================

Muon replaces a matrix of momenta by a nearly orthogonal one. It brings its norm to at most 1 and
then applies odd polynomials that move singular values between 0 and 1 towards 1. Five scalings are
compared on the momentum of a small network, with the four families of polynomials that are in use:
the Frobenius norm, the spectral norm, the Schatten-4 norm, the row sums of the Gram matrix (AOL),
and the row sums of its square, which is one more Gram step.

The larger the singular values after scaling, the fewer polynomials are needed. AOL and
`gramnorm.spectral_rescaling` rescale row by row, so they orthogonalise the rescaled matrix, whose
polar factor is another one.

The script also counts, for matrices that scalings find hard, how often the norm is above 1 after
all, and how often it then grows above 1.5 by the first five polynomials of Polar Express: as they
are optimal on (0, 1], and over the powers of 1.01 by which their authors divide them.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import pyplot as plt
from torch import nn

import gramnorm as gn

try:
    import jax
except ImportError:  # the transformation at the end of this part is for those who have it
    jax = None

Polynomial = tuple[float, float, float]
"""Coefficients of s, s^3 and s^5."""

QUINTIC = (15 / 8, -10 / 8, 3 / 8)
MUON = (3.4445, -4.7750, 2.0315)
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
)
LENIENT = tuple((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in POLAR_EXPRESS[:5])
"""For numbers up to 1.01."""

STEPS = 12
FAMILIES: dict[str, Sequence[Polynomial]] = {
    "cubic 3/2, -1/2": STEPS * ((3 / 2, -1 / 2, 0.0),),
    "quintic 15/8, -10/8, 3/8": STEPS * (QUINTIC,),
    "Muon's quintic (Jordan 2024)": STEPS * (MUON,),
    "Polar Express (arXiv:2505.16932)": (*POLAR_EXPRESS, *(STEPS - 6) * (QUINTIC,)),
}


def newton_schulz(y: Any, polynomials: Iterable[Polynomial], gram: Any = None) -> Any:
    """Apply the polynomials to the singular values of wide matrices; `gram` is y y^T, if known."""
    for a, b, c in polynomials:
        gram = y @ y.mT if gram is None else gram
        y = a * y + (b * gram + c * (gram @ gram)) @ y
        gram = None
    return y


def orthogonalised(x: Any, *, gram_steps: int = 1, steps: int = 5) -> Any:
    """Return nearly orthogonal matrices of either library: the shorter side is rescaled."""
    tall = x.shape[-2] > x.shape[-1]
    y, gram = gn.spectral_rescaling(x.mT if tall else x, steps=gram_steps, gram=True)
    y = newton_schulz(y, steps * (MUON,), gram)
    return (y.mT if tall else y) * max(1.0, x.shape[-2] / x.shape[-1]) ** 0.5


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalised momentum (Nesterov's), for parameters that are matrices."""

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float = 0.02, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.mul_(group["momentum"]).add_(p.grad)
                    update = orthogonalised(p.grad + group["momentum"] * buffer)
                    p.sub_(group["lr"] * update)


class Transformation(NamedTuple):
    """The two functions of a gradient transformation, named and called as optax does it."""

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


def muon(lr: float = 0.02, *, momentum: float = 0.95) -> Transformation:
    """Return the same for JAX: trees of matrices in, trees of steps to add out."""

    def init(params: Any) -> Any:
        return jax.tree.map(jax.numpy.zeros_like, params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:  # noqa: ARG001
        state = jax.tree.map(lambda g, m: momentum * m + g, updates, state)
        nesterov = jax.tree.map(lambda g, m: g + momentum * m, updates, state)
        return jax.tree.map(lambda x: -lr * orthogonalised(x), nesterov), state

    return Transformation(init, update)


# %%
# The scalings.  The four in use are written as they are used, without a margin.


def row_sums(x: torch.Tensor) -> torch.Tensor:
    """Return AOL's factors, squared: the row sums of the moduli of the Gram matrix."""
    return torch.sum(torch.abs(x @ x.mT), dim=-1, keepdim=True)


SCALINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Frobenius": lambda x: x / torch.linalg.matrix_norm(x, keepdim=True),
    "spectral": lambda x: x / torch.linalg.matrix_norm(x.float(), ord=2, keepdim=True).to(x.dtype),
    "Schatten-4": lambda x: x / torch.sqrt(torch.linalg.matrix_norm(x @ x.mT, keepdim=True)),
    "AOL rows": lambda x: x / torch.sqrt(row_sums(x)),
    "spectral_rescaling, steps=1": lambda x: gn.spectral_rescaling(x, steps=1),
    "spectral_rescaling, steps=2": lambda x: gn.spectral_rescaling(x, steps=2),
}


def hard_matrices() -> list[torch.Tensor]:
    """Return 60 matrices: six kinds, each of ten shapes."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(10):
        m = int(rng.integers(4, 65))
        n = int(rng.integers(m, 129))
        noise = rng.standard_normal((m, n))
        left, _, right = np.linalg.svd(noise, full_matrices=False)
        found += [
            noise,
            np.outer(noise[:, 0], noise[0]),
            np.ones((m, n)),
            np.outer(np.sign(noise[:, 0]), noise[0]),
            right,
            left @ np.diag(10.0 ** -np.linspace(0, 6, m)) @ right,
        ]
    return [torch.tensor(x, dtype=torch.float32) for x in found]


def norm(y: torch.Tensor, rtol: float = 1e-3) -> float:
    """Return a certified lower bound on the norm; inf for what has overflowed."""
    if not torch.all(torch.isfinite(y)):
        return float("inf")
    return float(gn.matrix_norm_bracket(y.double(), rtol=rtol).lower)


def counts(scale: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype) -> str:
    """Say how many of the hard matrices keep a norm above 1, and how many then grow."""
    scaled = [scale(x.to(dtype)) for x in hard_matrices()]
    norms = [norm(y, rtol=1e-9) for y in scaled]
    grown, lenient = (
        sum(norm(newton_schulz(y, polynomials)) > 1.5 for y in scaled)
        for polynomials in (POLAR_EXPRESS[:5], LENIENT)
    )
    above = sum(found > 1 for found in norms)
    return (
        f"{above} of {len(norms)} above 1, largest {max(norms):.7f}; "
        f"grown: {grown}, over powers of 1.01: {lenient}"
    )


def momentum_of_a_network() -> torch.Tensor:
    """Train a small network with Muon on what another one answers; return a layer's momentum."""
    torch.manual_seed(0)
    teacher, student = (
        nn.Sequential(nn.Linear(64, 128, bias=False), nn.Tanh(), nn.Linear(128, 64, bias=False))
        for _ in range(2)
    )
    optimiser = Muon(student.parameters())
    losses = []
    for _ in range(40):
        x = torch.randn(256, 64)
        loss = nn.functional.mse_loss(student(x), teacher(x).detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    print(f"loss of the network: {losses[0]:.4f}, after {len(losses)} steps {losses[-1]:.4f}")
    return optimiser.state[student[2].weight]["momentum"]


def errors(y: torch.Tensor, polynomials: Sequence[Polynomial]) -> list[float]:
    """Return ||I - Y Y^T||_F / sqrt(m) before each polynomial and after the last."""
    iterates = [y]
    for polynomial in polynomials:
        iterates.append(newton_schulz(iterates[-1], [polynomial]))
    one = torch.eye(y.shape[-2])
    return [float(torch.linalg.matrix_norm(one - z @ z.mT)) / y.shape[-2] ** 0.5 for z in iterates]


def draw(x: torch.Tensor) -> None:
    """Draw the error against the number of polynomials, a panel for each family."""
    styles = ("C0-", "C1-", "C2-", "C3-", "k:", "C4--")
    _, panels = plt.subplots(2, 2, figsize=(9, 7), sharex=True, sharey=True, layout="constrained")
    for panel, (family, polynomials) in zip(panels.flat, FAMILIES.items(), strict=True):
        for (name, scale), style in zip(SCALINGS.items(), styles, strict=True):
            panel.semilogy(errors(scale(x), polynomials), style, label=name)
        panel.set_title(family, fontsize=10)
        panel.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    for panel in panels[1]:
        panel.set_xlabel("polynomials applied")
    for panel in panels[:, 0]:
        panel.set_ylabel("$||I - YY^T||_F / \\sqrt{m}$")


def compare(x: torch.Tensor) -> None:
    """Print what each scaling makes of a matrix, and how many polynomials it then takes."""
    polar = newton_schulz(SCALINGS["spectral"](x), 40 * (QUINTIC,))
    for name, scale in SCALINGS.items():
        y = scale(x)
        s = torch.linalg.svdvals(y)
        needed = [
            sum(error > 0.01 for error in errors(y, polynomials))
            for polynomials in (FAMILIES["quintic 15/8, -10/8, 3/8"], POLAR_EXPRESS)
        ]
        turned = torch.linalg.matrix_norm(newton_schulz(y, 40 * (QUINTIC,)) - polar)
        print(
            f"{name}: singular values {s[-1]:.4f} to {s[0]:.4f}; polynomials until the error is "
            f"0.01: {needed[0]} of 15/8, -10/8, 3/8, {needed[1]} of Polar Express; "
            f"distance from the polar factor {float(turned) / len(y) ** 0.5:.3f}"
        )


def main() -> None:
    """Count norms above 1, train, compare the scalings of a momentum, and draw."""
    parser = argparse.ArgumentParser(description="Compare scalings before Newton-Schulz.")
    parser.add_argument("--output", type=Path, default=Path(sys.argv[0]).with_suffix(".png"))
    output = parser.parse_args().output
    for name, scale in SCALINGS.items():
        for dtype in (torch.float32, torch.bfloat16):
            print(f"{name}, {str(dtype)[6:]}: {counts(scale, dtype)}")
    momentum = momentum_of_a_network()
    for label, x in {
        "momentum": momentum,
        "Gaussian 256 x 512": torch.randn(256, 512),
        "Gaussian 512 x 640": torch.randn(512, 640),
    }.items():
        print(f"\n{label}")
        compare(x)
    draw(momentum)
    plt.savefig(output, dpi=150)


if __name__ == "__main__":
    main()
