"""What Lorikeet changes in vLLM: each replaced method, function and attribute. docs/engine.md prints this table."""

from collections.abc import Mapping
from dataclasses import dataclass

VERSION = "0.32"
"""The release of vLLM that all of these were written for."""

_TESTS = "tests/serve/engine"

_PROMPT_LOGPROBS = "vllm.v1.worker.gpu.sample.prompt_logprob:PromptLogprobsWorker"
_MERGED = "vllm.lora.layers.column_parallel_linear:MergedColumnParallelLinearWithLoRA"
_VOCABULARY = "vllm.lora.layers.vocab_parallel_embedding:VocabParallelEmbeddingWithLoRA"
_INT8 = "vllm.model_executor.kernels.linear.scaled_mm.cpu:CPUInt8ScaledMMLinearKernel"


@dataclass(frozen=True)
class Change:
    """One change in behaviour.

    Attributes:
        why: What goes wrong, or is slower, without it.
        test: Fails without it.
        sources: By place (module:Class.method, or module:name) the SHA-256 of vLLM's source, its first 16 digits.
        is_required: Correct answers, or isolation between requests, depend on it: without it the start ends.
        is_overridden: By a subclass that vLLM is given by name, instead of a replacement.
    """

    why: str
    test: str
    sources: Mapping[str, str]
    is_required: bool = False
    is_overridden: bool = False


def change_at(place: str) -> Change:
    """The entry for a place.

    Raises:
        LookupError: There is none, or more than one.
    """
    found = [change for change in CHANGES if place in change.sources]
    if len(found) != 1:
        raise LookupError(f"{place} has {len(found)} entries in serve/engine/patches.py. Write one.")
    return found[0]


CHANGES: tuple[Change, ...] = (
    Change(
        "Adapters or batches keep clients waiting, or need more slots than there are, which ends the engine; a request "
        "with NaN or a costly grammar goes on.",
        f"{_TESTS}/test_scheduler.py",
        {
            "vllm.v1.core.sched.scheduler:Scheduler.schedule": "9bccda83b4fd34af",
            "vllm.v1.core.sched.scheduler:Scheduler._handle_blocked_waiting_request": "844606d80dea114b",
            "vllm.v1.core.sched.scheduler:Scheduler.add_request": "2fd9eefbdf572e52",
            "vllm.v1.core.sched.scheduler:Scheduler.finish_requests": "fd01cf8d16821cd7",
            "vllm.v1.core.sched.scheduler:Scheduler.update_from_output": "118a85f8ea703095",
        },
        is_required=True,
        is_overridden=True,
    ),
    Change(
        "NaN in a cache block reaches the next request that is given the block.",
        f"{_TESTS}/test_finite.py",
        {
            "vllm.v1.kv_cache_interface:KVCacheConfig.needs_kv_cache_zeroing": "8c96b0b52fe21bb9",
            "vllm.v1.worker.gpu_model_runner:count_nans_per_row": "9c54ec8c0e75af1b",
            "vllm.v1.worker.cpu_model_runner:CPUModelRunner._get_nans_in_logits": "cb45a9be4cfa8102",
            "vllm.v1.worker.cpu_model_runner:CPUModelRunner._zero_block_ids": "3be806eb86803be0",
            "vllm.v1.worker.cpu_model_runner:CPUModelRunner._init_kv_zero_meta": "3d18c2e5179f6253",
            "vllm.v1.worker.gpu.sample.sampler:get_num_nans": "67e7ef9f2ec426a0",
        },
        is_required=True,
    ),
    Change(
        "One costly grammar stops every request.",
        f"{_TESTS}/test_masks.py",
        {
            "vllm.v1.structured_output:StructuredOutputManager.grammar_bitmask": "d72f7f2519303aeb",
            "vllm.v1.structured_output:StructuredOutputManager._fill_bitmasks": "b695a26535af14af",
            "vllm.v1.structured_output:StructuredOutputManager._async_submit_fill_bitmask": "81ccc5e6fdfcbc60",
            "vllm.v1.structured_output:StructuredOutputManager.accept_tokens": "92044ba36d487f44",
        },
        is_required=True,
    ),
    Change(
        "Each grammar is compiled on the server's event loop, however long that takes.",
        f"{_TESTS}/test_structured.py",
        {
            "vllm.v1.structured_output.backend_xgrammar:validate_xgrammar_grammar": "55dc3515eec745ae",
        },
        is_required=True,
    ),
    Change(
        "A batch that needs the slot of a pinned adapter ends the engine.",
        f"{_TESTS}/test_slots.py",
        {
            "vllm.lora.worker_manager:LRUCacheWorkerLoRAManager._apply_adapters": "eea53a8694ba3a61",
        },
        is_required=True,
    ),
    Change(
        "A prompt's log-probabilities are computed with other requests' adapters on the output head.",
        f"{_TESTS}/test_head.py",
        {
            "vllm.lora.layers.logits_processor:LogitsProcessorWithLoRA._get_logits": "8bd14a64bdd0e037",
            "vllm.v1.worker.gpu_model_runner:GPUModelRunner._get_prompt_logprobs_dict": "0fff29709f9b8721",
            f"{_PROMPT_LOGPROBS}.compute_prompt_logprobs": "d24dda616317291e",
            f"{_PROMPT_LOGPROBS}.compute_prompt_token_id_logprobs": "67856d874514aabd",
        },
        is_required=True,
    ),
    Change(
        "Where a batch has both, base requests get the answers of an adapter.",
        f"{_TESTS}/cpu/test_punica.py",
        {
            "vllm.platforms.cpu:CpuPlatform.get_punica_wrapper": "27c5f358a5387ada",
        },
        is_required=True,
    ),
    Change(
        "The engine's processes import vLLM one after the other: a start takes half a minute longer on two cores.",
        f"{_TESTS}/cpu/test_forks.py",
        {
            "vllm.v1.engine.utils:get_mp_context": "689fcfe7a9c5e042",
            "vllm.v1.executor.multiproc_executor:get_mp_context": "689fcfe7a9c5e042",
        },
    ),
    Change(
        "The first request that needs a small function waits half a minute for its compilation.",
        f"{_TESTS}/cpu/test_punica.py",
        {
            "vllm.platforms.cpu:CpuPlatform.get_compile_backend": "895de15426c4b1c8",
            "vllm.platforms.cpu:CpuPlatform.simple_compile_backend": "c45734b1e47aff70",
        },
    ),
    Change(
        "Models with LoRA are not compiled, or at each start anew.",
        f"{_TESTS}/cpu/test_compilation.py",
        {
            "vllm.platforms.cpu:CpuPlatform.check_and_update_config": "3984538ea016e527",
            "torch.compiler:load_compiled_function": "f5679c8c5dc79d42",
            "vllm.config.model:ModelConfig.compute_hash": "185adb4f477dbfb4",
        },
    ),
    Change(
        "LoRA is computed by torch, on weights that are copied at each activation, and DoRA not at all.",
        f"{_TESTS}/test_patches.py",
        {
            "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA.create_lora_weights": "c347c96e0601e03f",
            "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA.set_lora": "ecf4c8afdbe2e6bc",
            "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA.reset_lora": "ec4f232ec9b84488",
            "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA._apply_lora_to_output": "b9b8b6179a6d59fa",
            f"{_MERGED}.create_lora_weights": "e3f0e0cf88ec69d0",
            f"{_MERGED}.set_lora": "52aa27a426ffa065",
            f"{_VOCABULARY}.create_lora_weights": "c5742a4a655d04c1",
            f"{_VOCABULARY}.set_lora": "257c49c05d6e680a",
            f"{_VOCABULARY}.reset_lora": "f21a9e656d687d38",
            f"{_VOCABULARY}.forward": "7c87a1943c12d165",
            "vllm.lora.layers.logits_processor:LogitsProcessorWithLoRA.create_lora_weights": "be53f0d571e0feac",
            "vllm.lora.layers.logits_processor:LogitsProcessorWithLoRA.set_lora": "fb092558beadde5a",
            "vllm.lora.layers.logits_processor:LogitsProcessorWithLoRA.reset_lora": "f21a9e656d687d38",
            "vllm.lora.model_manager:LoRAModelManager._create_merged_loras_inplace": "0e5e6745c0a78cc8",
        },
    ),
    Change(
        "Adapters are read and converted inside the engine's loop: a load stops every stream.",
        f"{_TESTS}/loading/test_mapped.py",
        {
            "vllm.lora.worker_manager:WorkerLoRAManager._load_adapter": "d220d24e4576dcd0",
            "vllm.lora.model_manager:LoRAModelManager._add_adapter": "b48af1db76b9f1ea",
        },
    ),
    Change(
        "Soft prompts are not served: vLLM cannot put virtual tokens into a batch.",
        f"{_TESTS}/test_soft_prompts.py",
        {
            "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin.load_lora_model": "6cad75fd416b59a0",
            "vllm.lora.model_manager:LoRAModelManager.activate_adapter": "e3d691794c4d35e3",
            "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding.forward": "756fe3b1ca6a6c78",
        },
    ),
    Change(
        "The scheduler asks the worker twice a step.",
        f"{_TESTS}/cpu/test_waiting.py",
        {
            "vllm.v1.worker.cpu_worker:CPUWorker.execute_model": "dd6bcfee2de5f49e",
        },
    ),
    Change(
        "Processes that wait take a core from those that compute.",
        f"{_TESTS}/cpu/test_waiting.py",
        {
            "vllm.distributed.device_communicators.shm_broadcast:SpinCondition.wait": "555e06395420ff8d",
        },
    ),
    Change(
        "Sampling copies the logits, and computes the log-probabilities of all tokens.",
        f"{_TESTS}/cpu/test_sampled.py",
        {
            "vllm.v1.sample.sampler:batched_count_greater_than": "97212b64334ec1e8",
            "vllm.v1.sample.sampler:Sampler.forward": "6c9319664f0497c9",
        },
    ),
    Change(
        "A request with a seed, whose prompt is longer than a step, ends the engine.",
        f"{_TESTS}/cpu/test_seeds.py",
        {
            "vllm.v1.worker.gpu_model_runner:GPUModelRunner._bookkeeping_sync": "b3385bf1e6fd1486",
        },
        is_required=True,
    ),
    Change(
        "Attention enters Python twice a layer and step.",
        f"{_TESTS}/cpu/test_attention.py",
        {
            "vllm.model_executor.layers.attention.attention:Attention.__init__": "ded5f8b698c67b8a",
            "vllm.model_executor.layers.attention.attention:Attention.forward": "e4000ef9e8c0bc1a",
            "vllm.v1.worker.cpu_model_runner:CPUModelRunner._model_forward": "5f9f48d43cd10f19",
        },
    ),
    Change(
        "Linear layers are multiplied by oneDNN, also where our kernels are faster.",
        f"{_TESTS}/cpu/test_linear.py",
        {
            "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm": "ec79d3cea7cf1256",
        },
    ),
    Change(
        "LoRA on an int8 base fails on CPUs without AMX.",
        f"{_TESTS}/cpu/test_linear.py",
        {
            f"{_INT8}.process_weights_for_onednn": "284fffd63008babc",
        },
    ),
)
