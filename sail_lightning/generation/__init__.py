"""Answers to questions: prefill with prefix sharing, decoding over a KV cache, stop rules, and masks."""

from sail_lightning.settings.renames import renamed

__getattr__ = renamed(
    __name__,
    {
        "Generation": f"{__name__}.engine:Generation",
        "generate": f"{__name__}.engine:generate",
        "ROOM": f"{__name__}.engine:INITIAL_DECODE_CAPACITY",
        "LOOP_MASKS": f"{__name__}.stop_rules:REPETITION_MIN_MASKS",
        "cut_loop": f"{__name__}.stop_rules:truncate_repetition",
    },
)
