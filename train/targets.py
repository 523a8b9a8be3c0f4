"""Accelerators for which a program can be compiled on a machine without them."""

import importlib.metadata
import importlib.util
import os
from typing import Any, NamedTuple

from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from bertgpt.errors import InputError

GIB = 2**30


class Target(NamedTuple):
    """A kind of accelerator; peak rates are in flops.py.

    Attributes:
        platform: JAX's platform: "tpu" or "cuda".
        kind: JAX's name of the device.
        memory: bytes that a program can use.
        bandwidth: bytes per second of the device's memory.
        clock: Hz, to convert the compiler's cycles into seconds; 0: the compiler estimates none.
        link: bytes per second that a device sends to its neighbours in a ring of devices; 0: not known.
    """

    platform: str
    kind: str
    memory: int
    bandwidth: float
    clock: float = 0.0
    link: float = 0.0


# Memory of a TPU: the limit that libtpu names when a program is too large. Of a GPU: the share that JAX allocates by
# default (XLA_PYTHON_CLIENT_MEM_FRACTION 0.75) of the bytes in the specification below.
# Bandwidths: "How to Scale Your Model" (Austin et al. 2025), chapter 2; NVIDIA's data sheets. A TPU sends on both links
# of a ring. Clock: the rate at which the matrix units reach the peak; docs/accelerators.md compares it with a product.
TARGETS = {
    "v5e": Target("tpu", "TPU v5 lite", int(15.75 * GIB), 819e9, 1.5e9, 9e10),
    "v5p": Target("tpu", "TPU v5", int(95.74 * GIB), 2765e9, 1.75e9, 1.8e11),
    "v6e": Target("tpu", "TPU v6 lite", int(31.25 * GIB), 1640e9, 1.75e9, 1.8e11),
    "h100": Target("cuda", "NVIDIA H100 80GB HBM3", int(0.75 * 84929347584), 3352e9),
    "a100": Target("cuda", "NVIDIA A100-SXM4-40GB", int(0.75 * 42331013120), 1555e9),
}
COMPILERS = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}  # packages; any one of them
EXTRAS = {"tpu": "aot-tpu", "cuda": "cuda"}
GPUS_PER_HOST = 8
# The specifications of XLA's GPU compiler.
SHARED = (
    "threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 threads_per_core_limit: 2048 "
    "block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 registers_per_core_limit: 65536 "
    "registers_per_block_limit: 65536"
)
GPUS = {
    "h100": (
        "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128 "
        "memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584 "
        "cuda_compute_capability { major: 9 }"
    ),
    "a100": (
        "shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 core_count: 108 fpus_per_core: 64 "
        "memory_bandwidth: 1555200000000 l2_cache_size: 41943040 clock_rate_ghz: 1.41 device_memory_size: 42331013120 "
        "cuda_compute_capability { major: 8 }"
    ),
}


def find(topology: str) -> Target:
    """The kind of accelerator in a topology such as v5e:4x4 or h100:8.

    Raises:
        InputError: the topology is not of this form, or the kind is unknown.
    """
    name, _, sizes = topology.partition(":")
    if name not in TARGETS or not all(size.isascii() and size.isdigit() for size in sizes.split("x")):
        raise InputError(
            f"--topology {topology}: give a kind of accelerator and the number of devices, such as v5e:2x4, v5p:2x2x1, "
            f"v6e:4x4, h100:8 or a100:8; the kinds are {', '.join(TARGETS)}"
        )
    return TARGETS[name]


def devices(topology: str) -> list[Any]:
    """The devices of a topology, for which programs can be compiled but not run.

    No device is opened, so other processes may use one, or compile too.

    Raises:
        InputError: the package with the compiler is not installed, or there is no such topology.
    """
    target, (name, _, sizes) = find(topology), topology.partition(":")
    if not _installed(target):
        package, extra = COMPILERS[target.platform][0], EXTRAS[target.platform]
        make = f"make install EXTRA={target.platform}"
        raise InputError(
            f"--topology {topology} needs the package {package}; pip install 'bertgpt[{extra}]', or in a clone: {make}"
        )
    try:
        if target.platform == "tpu":
            return _tpus(topology, [int(size) for size in sizes.split("x")])
        return _gpus(name, sizes)
    except JaxRuntimeError as error:
        raise InputError(f"--topology {topology}: {' '.join(str(error).split())}") from error


def version(target: Target) -> str:
    """The compiler of a target, with its version."""
    names = (*_installed(target), "jaxlib")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _installed(target: Target) -> list[str]:
    """The installed packages that contain the target's compiler."""
    return [name for name in COMPILERS[target.platform] if importlib.util.find_spec(name)]


def _tpus(topology: str, sizes: list[int]) -> list[Any]:
    os.environ |= {  # libtpu otherwise asks the network which TPU this machine has, and locks it
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_LOG_DIR": "disabled",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
    }
    flat = not topology.startswith("v5p")
    if len(sizes) != (2 if flat else 3):
        raise InputError(f"--topology {topology}: give {'2 sizes, such as 2x4' if flat else '3 sizes, such as 2x2x1'}")
    one_host = sizes in ([1, 1], [2, 2], [2, 4])  # of v5e and v6e; otherwise a host has 4 chips
    options = {"chips_per_host_bounds": (*sizes, 1)} if one_host else {}
    return topologies.get_topology_desc(topology, "tpu", **options).devices


def _gpus(name: str, sizes: str) -> list[Any]:
    count = int(sizes) if sizes.isdigit() else 0
    hosts, rest = divmod(count, GPUS_PER_HOST)
    if count < 1 or (hosts and rest):
        raise InputError(f"--topology {name}:{sizes}: give up to {GPUS_PER_HOST} GPUs, or a multiple of them")
    text = (
        f'gpu_device_info {{ {SHARED} {GPUS[name]} }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} '
        f'runtime_version {{ major: 12 minor: 9 patch: 0 }} device_description_str: "{TARGETS[name].kind}"'
    )
    shape = f"1x{max(1, hosts)}x{GPUS_PER_HOST if hosts else count}"
    return topologies.get_topology_desc(name, "cuda", target_config=text, topology=shape).devices
