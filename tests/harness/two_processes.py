"""Tensors and models with a part in each of two processes of PyTorch, against the whole.

``python -m tests.harness.two_processes FOLDER``, an empty folder in which they find each other.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import gramnorm as gn
from gramnorm._arrays import limits, spread
from gramnorm.torch import layer_norms, lipschitz_penalty

Rng = np.random.Generator
FAR = np.ldexp(1.0, np.asarray([900, 0, 0, 0, 0, 0, 0, -900]))[:, None]
LAST = np.arange(12).reshape(6, 2) == 11
MATRICES: dict[str, Callable[[Rng], np.ndarray]] = {
    "tall": lambda rng: rng.standard_normal((37, 5)),
    "wide": lambda rng: rng.standard_normal((5, 37)),
    "one row": lambda rng: rng.standard_normal((1, 5)),
    "zero": lambda _: np.zeros((6, 3)),
    "half zero": lambda rng: np.concatenate([np.zeros((4, 3)), rng.standard_normal((4, 3))]),
    "scales": lambda rng: rng.standard_normal((8, 3)) * FAR,
    "complex": lambda rng: rng.standard_normal((9, 4)) + 1j * rng.standard_normal((9, 4)),
    "float32": lambda rng: rng.standard_normal((9, 4)).astype(np.float32),
    "integers": lambda rng: rng.integers(-9, 9, (9, 4)),
    "nan": lambda _: np.where(LAST, np.nan, 1.0),
    "inf": lambda _: np.where(LAST, np.inf, 1.0),
}
GATHERED = (2**30, 0)
"""Bytes up to which tensors are gathered: all, none."""


def same(found: Any, expected: Any, **options: Any) -> None:
    found = found.full_tensor() if spread.is_dtensor(found) else found
    np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), **options)


def in_both(found: torch.Tensor) -> None:
    """Assert that both processes have the same bits."""
    both: list[Any] = [None, None]
    dist.all_gather_object(both, found.detach().numpy().tobytes())
    assert both[0] == both[1]


def compare_matrices(mesh: DeviceMesh) -> None:
    for name, draw in MATRICES.items():
        whole = torch.from_numpy(draw(np.random.default_rng(0)))
        expected, gap = gn.matrix_norm_bracket(whole), 1e-4 if name == "float32" else 1e-6
        for place in (Shard(0), Shard(1), Replicate()):
            x = distribute_tensor(whole, mesh, [place])
            for limits.GATHERED_BYTES in GATHERED:
                bracket = gn.matrix_norm_bracket(x)
                assert bracket.upper.dtype == expected.upper.dtype, name
                assert bracket.upper.shape == (), name
                same(bracket.upper, expected.upper, rtol=gap)
                same(bracket.lower, expected.lower, rtol=gap)
                assert bool(bracket.converged) == bool(expected.converged), name
                in_both(bracket.upper)
                in_both(gn.matrix_norm_bound(x))
            if whole.is_floating_point():
                steps = gn.gram_iteration(x, steps=3)
                same(steps, gn.gram_iteration(whole, steps=3), rtol=gap)


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten()]
    dense = [nn.Linear(5 * 16, 7), nn.Linear(7, 3)]
    return nn.Sequential(*layers, *dense).double().eval()


def compare_models(mesh: DeviceMesh) -> None:
    whole, cut = model(), model()
    for layer in cut.children():
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(cut, mesh=mesh)
    for limits.GATHERED_BYTES in GATHERED:
        with torch.no_grad():
            found, expected = layer_norms(cut), layer_norms(whole)
        assert list(found) == list(expected)
        for name, norm in found.items():
            assert not spread.is_dtensor(norm), name
            same(norm, expected[name], rtol=1e-6)
            in_both(norm)
    lipschitz_penalty(cut).backward()
    lipschitz_penalty(whole).backward()
    parameters = zip(cut.named_parameters(), whole.parameters(), strict=True)
    for (name, one), other in parameters:
        if other.grad is not None:
            same(one.grad, other.grad, rtol=1e-9, atol=1e-12, err_msg=name)


def work(rank: int, folder: str) -> None:
    meeting = (Path(folder) / "meeting").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    compare_matrices(mesh)
    compare_models(mesh)
    dist.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
    sys.stdout.write("done\n")
