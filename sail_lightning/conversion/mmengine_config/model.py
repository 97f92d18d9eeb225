"""Converts the `model` of an official config: backbone, upsampler, prompts, losses, teachers, LoRA and weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from sail_lightning.conversion.mmengine_config.ledger import Ledger, Section, short
from sail_lightning.errors import SailError

MODELS: dict[str, Literal["solo", "eve"]] = {"Sa2VASTModel": "solo", "Sa2VASTEVEModel": "eve"}
EVE_TOKENS = 8192
"""Longest sequence of EVE in tokens; unlike the official `max_length` of EVE, it includes the image."""
TEACHERS = (
    ("mask2former", "Mask2FormerTeacher", "teachers/mask2former-swin-large-coco-panoptic"),
    ("sam2", "SAM2Teacher", "teachers/sam2.1-hiera-large"),
    ("radio", "RADIOTeacher", "teachers/radio-l"),
)
"""Name of each teacher, which official keys have before `_model` and `_processor`, with its class here and its default
folder."""
LORA = {"r": ("r", 8), "lora_alpha": ("alpha", 8), "lora_dropout": ("dropout", 0.0)}
"""The names of LoRA's settings here by PEFT's names, with PEFT's defaults, which differ from those here."""


@dataclass(frozen=True)
class Settings:
    """The settings of the model with which the data sets of an official config must agree.

    Args:
        family: The official model, of the two there are.
        values: Arguments that the official data sets repeat, and their values in the model.
        prompts: Number of visual prompts.
    """

    family: Literal["solo", "eve"]
    values: dict[str, Any]
    prompts: int


def convert(ledger: Ledger, name: str) -> Settings:
    """Converts the model; `name` is the name of the file in errors.

    Raises:
        SailError: There is no model, or it is not Pixel-SAIL.
    """
    model = ledger.section("model")
    kind = short(model.get("type"))
    if kind not in MODELS:
        known = " and ".join(MODELS)
        raise SailError(f"{name}: the type of its model is {kind}; only {known}, Pixel-SAIL's, can be imported")
    family = MODELS[kind]
    model.went("type", f"model.backbone.class_path ({'SailQwen' if family == 'solo' else 'EVEv2'})")
    _backbone(model, family)
    _tokenizer(model)
    _upsampler(model, family)
    prompts = _prompts(model, family)
    _losses(model)
    _teachers(model)
    _lora(model)
    _weights(ledger, model)
    _rest(model)
    repeated = ("tokenizer", "special_tokens", "patch_size", "add_cls")
    values = {key: model.get(key, False if key == "add_cls" else None) for key in repeated}
    return Settings(family, values | {"prompt_template": model.get("template")}, prompts)


def _backbone(model: Section, family: str) -> None:
    ledger, target = model.ledger, "model.backbone.init_args"
    decoder = model.sub("single_transformer")
    decoder.went("type", "model.backbone.class_path")
    path = decoder.get("pretrained_model_name_or_path")
    if family == "solo":
        ledger.put("model.backbone.class_path", "SailQwen")
        decoder.carry(
            "pretrained_model_name_or_path", f"{target}.pretrained", note="sizes are those of its config.json"
        )
        model.carry("patch_size", f"{target}.patch_size")
        model.carry("add_cls", f"{target}.class_token", bool)
    else:
        ledger.put("model.backbone.class_path", "EVEv2")
        ledger.put(f"{target}.size", "7b")
        decoder.drop("pretrained_model_name_or_path", "EVEv2 starts from --model.weights, a converted checkpoint")
        ledger.notes.append(
            f"EVEv2 would start with random weights in place of {path}: give a converted official checkpoint with "
            "--model.weights=FOLDER."
        )
        model.same("patch_size", 32, "patches of EVEv2 7b, patch_stride x dense_stride")
        model.same("add_cls", False, "EVEv2 has a class vector of its own")
        ledger.add(f"{target}.activation_checkpointing", True, "the official model class always does so")
    own_weights = "weights are float32 here and trainer.precision says what is computed in; bf16 weights lose updates"
    decoder.drop("torch_dtype", own_weights)
    model.drop("torch_dtype", own_weights)
    decoder.drop("attn_implementation", "the fastest exact kernel is chosen (--model.backbone.attention=SDPAAttention)")
    decoder.same("use_cache", False, "training keeps no KV cache")


def _tokenizer(model: Section) -> None:
    tokenizer = model.sub("tokenizer")
    tokenizer.agree("type", "a local Hugging Face folder is read")
    tokenizer.carry("pretrained_model_name_or_path", "model.tokenizer")
    tokenizer.drop("trust_remote_code", "code in a tokenizer's folder is never run")
    tokenizer.agree("padding_side", "batches are packed and have no padding")
    tokenizer.agree("use_fast", "only fast tokenizers are read")


def _upsampler(model: Section, family: str) -> None:
    """Converts the upsampler. The official one has a block more than `patch_size / seg_pred_down_ratio` needs, and
    SOLO's ignores the key."""
    ledger = model.ledger
    ratio = model.get("seg_pred_down_ratio", 4) if family == "eve" else 4
    ledger.put("model.upsampler.class_path", "DeconvUpsampler")
    if family == "solo":
        model.drop("seg_pred_down_ratio", "the official model ignores it: its mask features always have stride 2")
        ledger.add("model.upsampler.init_args.stride", 2, "what the official model always has")
    else:
        ledger.put("model.upsampler.init_args.stride", max(1, ratio // 2))
        model.went(
            "seg_pred_down_ratio", "model.upsampler.init_args.stride (half: the official model has one block more)"
        )
    ledger.notes.append(
        f"Mask features have stride {max(1, ratio // 2)}, as in the official code; the paper says 4: "
        "--model.upsampler.stride=4."
    )
    model.carry("seg_hidden_states", "model.mask_channels")


def _prompts(model: Section, family: str) -> int:
    ledger = model.ledger
    tokens = model.get("special_tokens") or []
    in_tokens = sum(bool(re.fullmatch(r"<Prompt\d+>", str(token))) for token in tokens)
    count = int(model.get("visual_prompt_nums", in_tokens))
    kind = "PromptInjection" if count else "NoPrompts"
    ledger.put("model.prompt_encoder", {"class_path": kind, "init_args": {"num_prompts": count}})
    model.went("visual_prompt_nums", f"model.prompt_encoder.init_args.num_prompts ({kind})")
    model.agree("special_tokens", "the model adds its tokens itself; weights are matched by name, so order is free")
    if family == "eve" and count:
        ledger.add("model.prompt_encoder.init_args.projection", False, "EVE's prompts have no projection")
    return count


def _losses(model: Section) -> None:
    target = "model.mask_loss.init_args"
    for key, ours, others in (
        ("loss_mask", "bce_weight", {"use_sigmoid": True, "reduction": "mean"}),
        ("loss_dice", "dice_weight", {"use_sigmoid": True, "activate": True, "naive_dice": True, "eps": 1.0}),
    ):
        loss = model.sub(key)
        if loss:
            model.ledger.put("model.mask_loss.class_path", "MaskLoss")
        wanted = "CrossEntropyLoss" if key == "loss_mask" else "DiceLoss"
        if short(loss.get("type")) == wanted:
            loss.went("type", "model.mask_loss.class_path (MaskLoss)")
            loss.carry("loss_weight", f"{target}.{ours}", float)
        else:
            loss.drop_all(f"MaskLoss has no {short(loss.get('type'))}; {ours} keeps its default")
            continue
        for name, value in others.items():
            loss.same(name, value, "the only form of the loss here")
        if key == "loss_dice":
            loss.same("reduction", "mean", "the only form of the loss here")
    if model.get("loss_sample_points"):
        model.went("loss_sample_points", f"{target}.num_points")
        model.carry("num_points", f"{target}.num_points")
    elif "loss_mask" in model or "loss_dice" in model:
        model.ledger.put(f"{target}.num_points", 0)
        model.ledger.put(f"{target}.resolution", "features")
        model.went("loss_sample_points", f"{target}.num_points = 0 and resolution = features")
        model.drop("num_points", "points are not sampled")
    model.ledger.notes.append(
        "Losses are means over the whole accumulation window; --model.loss_normalization=microbatch has the official "
        "means over each batch."
    )


def _teachers(model: Section) -> None:
    used = bool(model.get("use_distill", False))
    folders = []
    for name, kind, usual in TEACHERS:
        model.drop(f"{name}_processor", f"{kind} resizes and normalises images itself, as its folder says")
        teacher = model.sub(f"{name}_model")
        if not teacher:
            model.agree(f"{name}_model", "no such teacher")
        elif not used:
            model.drop(f"{name}_model", "use_distill is not true, so the official run does not distil")
        else:
            folder = str(teacher.get("pretrained_model_name_or_path", usual))
            folders.append(folder)
            _teacher(teacher, f"model.teachers.{name}", kind, folder)
    model.agree("use_distill", "model.teachers says so")
    if folders:
        model.went("distillation_loss_weight", "weight of each teacher")
        model.ledger.notes.append(f"Teachers are read from Hugging Face folders: {', '.join(folders)}.")
    else:
        model.drop("distillation_loss_weight", "there is no teacher")


def _teacher(teacher: Section, target: str, kind: str, folder: str) -> None:
    weight = float(teacher.ledger.section("model").get("distillation_loss_weight", 1.0))
    teacher.ledger.put(target, {"class_path": kind, "init_args": {"folder": folder, "weight": weight}})
    teacher.went("type", f"{target}.class_path ({kind})")
    teacher.went("pretrained_model_name_or_path", f"{target}.init_args.folder")
    for key in teacher.values.keys() - {"type", "pretrained_model_name_or_path"}:
        teacher.drop(key, f"{kind} reads one local Hugging Face folder, here {folder}")


def _lora(model: Section) -> None:
    lora = model.sub("single_transformer_lora")
    if not lora:
        model.agree("single_transformer_lora", "no adapter: all weights are trained")
        return
    target, ledger = "model.adapter.init_args", model.ledger
    ledger.put("model.adapter.class_path", "LoRA")
    lora.went("type", "model.adapter.class_path (LoRA)")
    for key, (ours, default) in LORA.items():
        if key in lora:
            lora.carry(key, f"{target}.{ours}")
        else:
            ledger.add(f"{target}.{ours}", default, "PEFT's default, which the official run has")
    if isinstance(targets := lora.get("target_modules"), list | tuple):
        lora.carry("target_modules", f"{target}.targets", list)
    else:
        lora.same(
            "target_modules", None, "all linear layers of the decoder", f"name the layers: {targets!r} is not a list"
        )
    lora.carry("use_rslora", f"{target}.rslora", bool)
    lora.carry("use_dora", f"{target}.dora", bool)
    lora.same("bias", "none", "adapters train no bias")
    lora.agree("task_type", "it does not change what PEFT computes")
    lora.drop("modules_to_save", "the embedding table and the language head are trained whole, as official code does")
    ledger.add("model.backbone.init_args.activation_checkpointing", True, "the official code does so with LoRA")
    ledger.notes.append("With LoRA the patch embedding is trained whole here; in the official code it has an adapter.")


def _weights(ledger: Ledger, model: Section) -> None:
    """Converts the initial checkpoint: the model's own, or mmengine's `load_from`, which is loaded after it."""
    base = model.sub("single_transformer").get("pretrained_model_name_or_path")
    root = ledger.section()
    later = isinstance(root.get("load_from"), str)
    for section, key in ((model, "pretrained_pth"), (root, "load_from")):
        path = section.get(key)
        if later and section is model:
            section.drop(key, "load_from is loaded after it")
            continue
        if not isinstance(path, str):
            section.agree(key, "no checkpoint to start from")
            continue
        folder = str(PurePosixPath(path).with_suffix(""))
        ledger.put("model.weights", folder)
        section.went(key, "model.weights (a folder that must be made first, see the end)")
        ledger.notes.append(f"Make the weights to start from: sail-lightning convert {path} {folder} --base {base}")
    root.same(
        "resume", False, "a run is resumed with --ckpt_path", "an official checkpoint holds no state of a run to resume"
    )


def _rest(model: Section) -> None:
    template = "the backbone has the chat template of the official model"
    name = str(model.get("template"))
    model.same("template", name if name.endswith("qwen_chat") else "qwen_chat", template)
    model.agree("bs", "batches are packed; see data.token_budget")
    for key in ("use_eval", "eval_interval", "eval_image", "eval_text"):
        model.drop(key, "answers in training come from data.val (overlays, trainer.val_check_interval)")
    model.ledger.add("data.mask_sample_weight", 0.1, "weight of the language loss in samples with masks")
