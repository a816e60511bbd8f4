"""The GPUs programs are compiled for, none of which has to be present.

A target is what the compilers need (the description of the device that XLA reads, the architecture ptxas assembles for)
and what the arithmetic on their output needs (limits of a multiprocessor, bandwidth, clock). The names are those of
`pallas_kernels.compile_for`; one representative card stands for each. Figures are public device properties, none of
them measured here: those of the GeForce cards were never checked against a device description of XLA's own.
"""

from dataclasses import dataclass

from pallas_kernels._architecture import Architecture

KIB = 1024


@dataclass(frozen=True)
class Target:
    """One GPU. Sizes in bytes, bandwidth in bytes per second, clocks in Hz."""

    name: str
    card: str
    assembler_arch: str  # what ptxas -arch is given; "a" adds the instructions of exactly this architecture
    threads_per_multiprocessor: int
    blocks_per_multiprocessor: int
    shared_per_multiprocessor: int
    shared_per_block: int  # the most a kernel can ask for
    fp32_per_clock: int  # float32 additions per clock and multiprocessor
    tensor_per_clock: int  # bfloat16 multiply-adds per clock and multiprocessor, summed in float32
    l2_bytes: int
    memory_bytes: int
    bandwidth: float
    clock: float  # sustained under load: what times are modelled with
    maximum_clock: float
    registers_per_multiprocessor: int = 65536
    shared_reserved: int = KIB  # taken by the driver from every block

    @property
    def architecture(self) -> Architecture:
        """The card as the kernels' own heuristics see it."""
        return Architecture.of(self.name)

    @property
    def multiprocessors(self) -> int:
        """How many there are; the number that the heuristics use."""
        return self.architecture.multiprocessors

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Major and minor version: (9, 0) for sm_90."""
        digits = self.name.removeprefix("sm_")
        return int(digits[:-1]), int(digits[-1])

    def target_config(self) -> str:
        """The device description XLA compiles for (text of its GpuTargetConfigProto)."""
        major, minor = self.compute_capability
        extension = "ACCELERATED_FEATURES" if self.assembler_arch.endswith("a") else "NONE"
        return f"""gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
  core_count: {self.multiprocessors}
  fpus_per_core: {self.fp32_per_clock}
  clock_rate_ghz: {self.maximum_clock / 1e9:g}
  memory_bandwidth: {self.bandwidth:.0f}
  device_memory_size: {self.memory_bytes}
  l2_cache_size: {self.l2_bytes}
  shared_memory_per_core: {self.shared_per_multiprocessor}
  shared_memory_per_block: {48 * KIB}
  shared_memory_per_block_optin: {self.shared_per_block}
  registers_per_core_limit: {self.registers_per_multiprocessor}
  registers_per_block_limit: {self.registers_per_multiprocessor}
  threads_per_core_limit: {self.threads_per_multiprocessor}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{self.card}"
"""


_ALL = (
    Target(
        name="sm_80",
        card="NVIDIA A100-SXM4-80GB",
        assembler_arch="sm_80",
        threads_per_multiprocessor=2048,
        blocks_per_multiprocessor=32,
        shared_per_multiprocessor=164 * KIB,
        shared_per_block=163 * KIB,
        fp32_per_clock=64,
        tensor_per_clock=1024,
        l2_bytes=40 * KIB**2,
        memory_bytes=85_100_068_864,
        bandwidth=2.03904e12,
        clock=1.41e9,
        maximum_clock=1.41e9,
    ),
    Target(
        name="sm_89",
        card="NVIDIA GeForce RTX 4090",
        assembler_arch="sm_89",
        threads_per_multiprocessor=1536,
        blocks_per_multiprocessor=24,
        shared_per_multiprocessor=100 * KIB,
        shared_per_block=99 * KIB,
        fp32_per_clock=128,
        tensor_per_clock=256,
        l2_bytes=72 * KIB**2,
        memory_bytes=25_393_692_672,
        bandwidth=1.008096e12,
        clock=2.52e9,
        maximum_clock=2.52e9,
    ),
    Target(
        name="sm_90",
        card="NVIDIA H100 80GB HBM3",
        assembler_arch="sm_90a",
        threads_per_multiprocessor=2048,
        blocks_per_multiprocessor=32,
        shared_per_multiprocessor=228 * KIB,
        shared_per_block=227 * KIB,
        fp32_per_clock=128,
        tensor_per_clock=2048,
        l2_bytes=50 * KIB**2,
        memory_bytes=84_942_979_072,
        bandwidth=3.35232e12,
        clock=1.755e9,
        maximum_clock=1.98e9,
    ),
    Target(
        name="sm_100",
        card="NVIDIA B200",
        assembler_arch="sm_100a",
        threads_per_multiprocessor=2048,
        blocks_per_multiprocessor=32,
        shared_per_multiprocessor=228 * KIB,
        shared_per_block=227 * KIB,
        fp32_per_clock=128,
        tensor_per_clock=4096,
        l2_bytes=132_644_864,
        memory_bytes=191_514_411_008,
        bandwidth=7.67232e12,
        clock=1.85e9,
        maximum_clock=1.965e9,
    ),
    Target(
        name="sm_120",
        card="NVIDIA GeForce RTX 5090",
        assembler_arch="sm_120",
        threads_per_multiprocessor=1536,
        blocks_per_multiprocessor=24,
        shared_per_multiprocessor=100 * KIB,
        shared_per_block=99 * KIB,
        fp32_per_clock=128,
        tensor_per_clock=256,
        l2_bytes=96 * KIB**2,
        memory_bytes=34_190_458_880,
        bandwidth=1.792128e12,
        clock=2.41e9,
        maximum_clock=2.41e9,
    ),
)

TARGETS: dict[str, Target] = {target.name: target for target in _ALL}


def find_target(target: str | Target) -> Target:
    """The target of that name (a Target is returned as it is).

    Raises:
        ValueError: unknown name.
    """
    if isinstance(target, Target):
        return target
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}.")
    return TARGETS[target]
