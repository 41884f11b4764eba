"""Arrays with a part on each device or in each process: bounds are those of the whole, everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gramnorm as gn
from gramnorm._arrays import libraries, limits, spread
from tests.harness import oracles
from tests.harness.families import DTYPES, FAMILIES

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng


def run(script, *arguments, **environment):
    """Run a script of the harness as another process, to its end."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.harness.{script}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.endswith("done\n")


# ---------------------------------------------------------------------------------------- JAX


@pytest.mark.slow
def test_arrays_on_a_mesh_of_jax_have_the_bounds_of_the_whole():
    pytest.importorskip("jax")
    flags = "--xla_force_host_platform_device_count=4"
    run("on_mesh", XLA_FLAGS=flags, JAX_PLATFORMS="cpu")


def test_results_on_a_mesh_are_copies_on_each_device():
    jax = pytest.importorskip("jax")
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ("i",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("i"))
    copies = libraries._copies(rows)
    assert copies.is_fully_replicated
    assert copies.mesh == mesh
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert libraries._copies(one).is_fully_replicated
    assert libraries._copies(jax.devices()[0]) is jax.devices()[0]


# ------------------------------------------------------------------------------------- PyTorch


@pytest.fixture(scope="module")
def mesh():
    """Yield a mesh of this process alone."""
    torch = pytest.importorskip("torch")
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available():
        pytest.skip("this PyTorch is not distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture(params=["gathered", "added up"])
def dtensor(request, mesh, monkeypatch):
    """Return what makes DTensors, which are gathered or too large for that."""
    tensors, torch = map(pytest.importorskip, ("torch.distributed.tensor", "torch"))
    if request.param == "added up":
        monkeypatch.setattr(limits, "GATHERED_BYTES", 0)

    def cut(host, axis=0):
        return tensors.distribute_tensor(torch.from_numpy(host), mesh, [tensors.Shard(axis)])

    return cut


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_of_a_dtensor_are_on_their_side(dtensor, monkeypatch, dtype):
    monkeypatch.setattr(limits, "GRAM_PIECE", (2, 1))
    for seed, name in enumerate(RNG(len(dtype)).choice(sorted(FAMILIES), 8, replace=False)):
        rng = RNG(seed)
        a = FAMILIES[name](rng, *(int(n) for n in rng.integers(1, 9, 2)), dtype)
        x = dtensor(a, seed % 2)
        bracket = gn.matrix_norm_bracket(x)
        assert not spread.is_dtensor(bracket.upper)
        lower, upper = bracket.lower.numpy()[None], bracket.upper.numpy()[None]
        assert oracles.check_stack(a[None], lower, upper).clean, name
        assert float(gn.matrix_norm_bound(x)) == float(bracket.upper)


def test_gradients_of_a_dtensor_go_back_to_its_parts(dtensor):
    a = RNG(0).standard_normal((6, 4))
    x = dtensor(a).requires_grad_()
    gn.matrix_norm_bound(x).backward()
    _, expected = gn.matrix_norm_value_and_grad(a)
    assert spread.is_dtensor(x.grad)
    np.testing.assert_allclose(x.grad.full_tensor().numpy(), expected, atol=1e-12)


def test_all_functions_take_a_dtensor(dtensor):
    kernel = RNG(1).standard_normal((4, 3, 3))
    for function in (
        gn.conv_norm_bound,
        lambda k: gn.conv_norm_bracket(k, 8).lower,
        lambda k: gn.matrix_norm_bracket(k).lower,
        lambda k: gn.matrix_norm_bracket(k[0], vectors=True).right,
        lambda k: gn.gram_iteration(k, steps=2),
        lambda k: gn.conv_gram_iteration(k, 8, steps=2),
        lambda k: gn.spectral_rescaling(k, steps=2),
        lambda k: gn.conv_norm_value_and_grad(k)[1],
    ):
        found, expected = function(dtensor(kernel)), function(kernel)
        found = found.full_tensor() if spread.is_dtensor(found) else found
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.slow
def test_two_processes_of_torch_find_the_bounds_of_the_whole(tmp_path):
    pytest.importorskip("torch")
    run("two_processes", str(tmp_path))
