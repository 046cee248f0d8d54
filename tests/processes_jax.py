"""One of several processes of four devices each, joined by jax.distributed: `processes_jax.py ADDRESS COUNT NUMBER`.

A mesh of the devices of all of them: batches, weights and optimizers are spread over processes; prints "right".
"""

import sys

import jax

address, count, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, count, number, initialization_timeout=60)

from tests import meshes_jax

AUTO, EXPLICIT = meshes_jax.KINDS
for check in (meshes_jax.data_parallel, meshes_jax.tensor_parallel, meshes_jax.optimizers):
    check(AUTO, jax.device_count())
meshes_jax.data_parallel(EXPLICIT, jax.device_count())
assert jax.device_count() == 4 * count
assert jax.process_count() == count
print("right")
