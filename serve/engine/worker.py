"""Added to vLLM's workers (`worker_extension_cls`): what their adapter slots and host memory really hold."""

from typing import Any


class AdapterInspection:
    """Methods that the server calls in every worker by `collective_rpc`. The names must be new to vLLM's worker."""

    model_runner: Any

    def lorikeet_adapters(self) -> list[list[int | None]]:
        """`lora_int_id` per engine slot (None: free), and of every adapter in host memory."""
        manager = self._lorikeet_manager()
        return [list(manager.lora_index_to_id), list(manager.list_adapters())]

    def lorikeet_layout(self) -> tuple[str, list[tuple[str, int, tuple[int, ...], tuple[str, ...]]]] | None:
        """The form of a `Layout`, and the fields of each of its layers; None: the engine reads adapters itself."""
        from serve.engine.loading.mapped import layout_of

        layout = layout_of(self.model_runner.lora_manager)
        if layout is None:
            return None
        return layout.form, [(shape.name, shape.inputs, shape.widths, shape.parts) for shape in layout.layers]

    def lorikeet_products(self) -> str:
        """What multiplies the base's linear layers, and what was measured for that; empty where nothing was."""
        from serve.engine.cpu.linear import PRODUCTS

        return str(PRODUCTS)

    def lorikeet_unpin(self, lora_id: int) -> bool:
        """Let a pinned adapter be evicted again; False where it was not pinned."""
        manager = self._lorikeet_manager()
        caches = [c for c in (manager._registered_adapters, manager._active_adapters) if lora_id in c.pinned_items]
        for cache in caches:
            cache._unpin(lora_id)
        return bool(caches)

    def _lorikeet_manager(self) -> Any:
        return self.model_runner.lora_manager._adapter_manager
