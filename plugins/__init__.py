"""The plugins of the five sockets. Importing this package registers them all."""

if __name__ != "sail_lightning.plugins":
    raise ImportError("import sail_lightning.plugins, not plugins")

from sail_lightning.plugins import attention, backbones, prompt_encoders, teachers, upsamplers

__all__ = ["attention", "backbones", "prompt_encoders", "teachers", "upsamplers"]
