"""What XLA is told in tests."""

# Eight devices on any machine.
DEVICES = "--xla_force_host_platform_device_count=8"
# Tests run each program for moments; compiled with these they take a fifth of the time until it runs.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
# The default, for single programs whose bits the tests compare: `jax.jit(..., compiler_options=...)`.
AS_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}
