"""How programs are compiled: the persistent cache, from which a restarted run reads them, and options of XLA."""

import os

import jax

from fmboost_jax.files import user_cache

# For `jax.jit` of a flow, `compiler_options`; each platform ignores those of the others.
FLOW_OPTIONS = {
    # XLA's CPU compiler otherwise orders operations for concurrency. A UNet call on large maps then needs six times the
    # memory and is not faster: its operations use all cores one by one. Training programs gain nothing.
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    # The steps' loop and its convolutions become one CUDA graph, too; XLA's default leaves them out. The kernels of one
    # image take microseconds, about as long as their launches.
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,CONVOLUTION,"
    "CONDITIONAL,WHILE",
}


class CompilationCache:
    """Compiled programs in a folder. Anyone who can write to the folder can make this process run any program.

    Where JAX_COMPILATION_CACHE_DIR names a folder, that one is used.

    Args:
        where: a folder; "auto" for `~/.cache/fmboost_jax` (in XDG_CACHE_HOME where that is set) or, with many
            processes, `WORKDIR/compilation_cache`, because in JAX only process 0 writes the cache and the others read
            it; "" for none.
        workdir: folder of the run.
    """

    def __init__(self, where: str, workdir: str):
        self.found = 0
        if where == "auto":
            where = os.path.join(workdir, "compilation_cache") if jax.process_count() > 1 else user_cache()
        if not self._folder and where:
            jax.config.update("jax_compilation_cache_dir", os.path.abspath(where))
        if jax.process_count() > 1:
            # With XLA's own caches, process 0 would have other cache keys than the other processes.
            jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
        jax.monitoring.register_event_listener(self._note)

    @property
    def _folder(self) -> str | None:
        # jax's stubs do not list this option.
        return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]

    def _note(self, event: str, **_) -> None:
        self.found += event == "/jax/compilation_cache/cache_hits"

    def __str__(self) -> str:
        folder = self._folder
        return f"{self.found} program(s) found in {folder}" if folder else "no compilation cache"
