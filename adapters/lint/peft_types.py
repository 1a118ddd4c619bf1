"""What becomes of PEFT's other types of adapters: which can be converted to a LoRA, which are a base of their own."""

_CONVERTED = {
    "VERA", "LOHA", "LOKR", "DELORA", "FOURIERFT", "RANDLORA", "MISS", "C3A", "GRALORA", "WAVEFT", "VBLORA", "PSOFT",
    "UNILORA", "TINYLORA",
}  # fmt: skip
_MERGED = {"IA3", "OFT", "BOFT", "ADALORA", "HIRA", "SHIRA", "HRA", "LN_TUNING", "ROAD"}


def next_step(peft_type: str) -> str:
    """How an adapter of this type can be served, or what can be trained instead."""
    if peft_type in _CONVERTED:
        return (
            f"Convert it with PEFT's convert_to_lora, or train `method: {peft_type.lower()}`, which converts it and "
            "measures the error."
        )
    if peft_type in _MERGED:
        return (
            "Merge it with PEFT's merge_and_unload, and prepare the result with `lorikeet base prepare` as a base of "
            "its own."
        )
    if peft_type == "BOTTLENECK":
        return "An engine computes the base's layers only; train `method: lora`, the nearest that is served."
    if peft_type in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING"):
        return "It can be evaluated offline only; train `method: lora`, the nearest that is served."
    return "Train `method: lora`, the nearest that is served."
