"""LeNet's kernel by the JAX package neural-tangents, for `tests.benchmarks.ntk --jax`: first and median warm seconds.

It runs in an environment of its own, with jax 0.4.23, the last that neural-tangents 0.6.5 imports on:

python -m venv peer && peer/bin/pip install jax==0.4.23 jaxlib==0.4.23 neural-tangents==0.6.5 "numpy<2" "scipy<1.13"
"""

from __future__ import annotations

import resource
import statistics
import sys
import time

import jax
import neural_tangents
from jax.example_libraries import stax

IMPLEMENTATION = 3  # structured derivatives, the fastest of its three on this network


def main(samples: int, calls: int) -> None:
    initialize, apply = stax.serial(
        *(stax.Conv(6, (5, 5), padding="SAME"), stax.Relu, stax.AvgPool((2, 2), (2, 2))),
        *(stax.Conv(16, (5, 5), padding="SAME"), stax.Relu, stax.AvgPool((2, 2), (2, 2)), stax.Flatten),
        *(stax.Dense(120), stax.Relu, stax.Dense(84), stax.Relu, stax.Dense(10)),
    )
    key = jax.random.PRNGKey(0)
    _, parameters = initialize(key, (-1, 32, 32, 3))
    x = jax.random.uniform(key, (samples, 32, 32, 3))
    kernel = jax.jit(
        neural_tangents.empirical_ntk_fn(apply, trace_axes=(-1,), vmap_axes=0, implementation=IMPLEMENTATION)
    )
    times = []
    for _ in range(1 + calls):
        start = time.perf_counter()
        kernel(x, None, parameters).block_until_ready()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(times[0], statistics.median(times[1:]), peak)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
