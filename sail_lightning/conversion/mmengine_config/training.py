"""Converts the optimiser, the schedule, the precision and all other settings that Lightning's Trainer has here."""

from __future__ import annotations

import math
from typing import Any

from sail_lightning.conversion.mmengine_config.ledger import Ledger, Section, short

OPTIMIZERS = {
    "AdamW": ("lr", "betas", "eps", "weight_decay", "amsgrad"),
    "Adam": ("lr", "betas", "eps", "weight_decay", "amsgrad"),
    "SGD": ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
}
"""The optimisers of torch that are carried over, with their arguments."""
PRECISION = {"bfloat16": "bf16-mixed", "float16": "16-mixed"}


def convert(ledger: Ledger) -> None:
    """Converts the settings of training."""
    wrapper = ledger.section("optim_wrapper")
    accumulate = int(wrapper.get("accumulative_counts", 1))
    wrapper.carry("accumulative_counts", "trainer.accumulate_grad_batches", int)
    _precision(wrapper)
    _optimizer(wrapper)
    _clipping(wrapper)
    epochs = _length(ledger, accumulate)
    _schedule(ledger, epochs, accumulate)
    _hooks(ledger, accumulate)
    _runtime(ledger)


def _precision(wrapper: Section) -> None:
    kind, dtype = short(wrapper.get("type")), wrapper.get("dtype", "float16")
    ledger = wrapper.ledger
    if kind == "AmpOptimWrapper" and short(dtype) in PRECISION:
        ledger.put("trainer.precision", PRECISION[short(dtype)])
        wrapper.went("type", "trainer.precision")
        wrapper.went("dtype", "trainer.precision")
        wrapper.drop("loss_scale", "bfloat16 needs none, and Lightning scales float16 itself")
    elif kind == "OptimWrapper":
        ledger.put("trainer.precision", "32-true")
        wrapper.went("type", "trainer.precision")
    else:
        wrapper.drop("type", "trainer.precision keeps its default")
        wrapper.drop("dtype", "trainer.precision keeps its default")


def _optimizer(wrapper: Section) -> None:
    optimizer = wrapper.sub("optimizer")
    kind = short(optimizer.get("type"))
    known = OPTIMIZERS.get(kind)
    if known is None:
        optimizer.drop_all(
            f"{kind} is none of {', '.join(OPTIMIZERS)}; AdamW with its defaults is used: set model.optimizer"
        )
    else:
        wrapper.ledger.put("model.optimizer.class_path", kind)
        optimizer.went("type", "model.optimizer.class_path")
        for key in known:
            plain = (lambda value: list(value)) if key == "betas" else (lambda value: value)
            note = "but of norms, biases and embedding tables" if key == "weight_decay" else ""
            optimizer.carry(key, f"model.optimizer.init_args.{key}", plain, note)
    wrapper.drop("paramwise_cfg", "norms, biases and embeddings are never decayed here; other groups are not supported")
    wrapper.same("constructor", "DefaultOptimWrapperConstructor", "parameters are grouped by the model")


def _clipping(wrapper: Section) -> None:
    clip = wrapper.sub("clip_grad")
    if not clip:
        wrapper.ledger.put("trainer.gradient_clip_val", 0)
        wrapper.agree("clip_grad", "gradients are not clipped")
        return
    if clip.get("type", "norm") == "value":
        wrapper.ledger.put("trainer.gradient_clip_algorithm", "value")
        clip.carry("clip_value", "trainer.gradient_clip_val", float)
    else:
        clip.carry("max_norm", "trainer.gradient_clip_val", float)
    clip.went("type", "trainer.gradient_clip_algorithm")
    clip.same("norm_type", 2, "the norm that is clipped")
    clip.drop("error_if_nonfinite", "the section non_finite says what happens to a gradient that is not finite")


def _length(ledger: Ledger, accumulate: int) -> float | None:
    """Converts the length of the run and returns its epochs, or None where it is counted in iterations."""
    loop = ledger.section("train_cfg")
    loop.agree("type", "Lightning's loop")
    loop.same("by_epoch", "max_epochs" in loop, "training data has no end here, runs are counted in steps")
    loop.drop("val_interval", "trainer.val_check_interval, in steps")
    if "max_iters" in loop:
        iterations = int(loop.get("max_iters"))
        loop.carry(
            "max_iters", "trainer.max_steps", lambda _: math.ceil(iterations / accumulate), "iterations / accumulation"
        )
        return None
    reason = "runs are counted in steps, and a config does not say how long the data is: set trainer.max_steps"
    loop.drop("max_epochs", reason)
    ledger.notes.append(
        "Set trainer.max_steps: a pass is SAMPLES / (accumulate_grad_batches x processes x samples in a batch); "
        "`sail-lightning data stats -c FILE` counts samples and tokens. The official runs have SAMPLES / "
        f"({accumulate} x GPUs) steps a pass at one sample a batch."
    )
    return float(loop.get("max_epochs", 1))


def _schedule(ledger: Ledger, epochs: float | None, accumulate: int) -> None:
    """Converts a linear warm-up and a cosine to `WarmupCosine`, and reports any other schedule."""
    schedulers = ledger.section("param_scheduler")
    parts = schedulers.subs() or ([schedulers] if schedulers else [])
    total = epochs if epochs is not None else ledger.section("train_cfg").get("max_iters")
    args: dict[str, Any] = {"warmup_ratio": 0.0}
    for part in parts:
        kind = short(part.get("type"))
        units = part.get("by_epoch", True) == (epochs is not None)
        if kind == "LinearLR" and part.get("begin", 0) == 0 and units and total:
            args["warmup_ratio"] = round(float(part.get("end", 0)) / total, 6)
            part.went("end", "model.schedule.init_args.warmup_ratio")
            part.drop("start_factor", "the first of N warm-up steps has 1 / N of the rate")
        elif kind == "CosineAnnealingLR" and units:
            rate = ledger.section("optim_wrapper", "optimizer").get("lr")
            args["final_ratio"] = float(part.get("eta_min", 0.0)) / float(rate) if rate else 0.0
            part.went("eta_min", "model.schedule.init_args.final_ratio (a share of lr)")
            part.same("end", total, "the cosine ends with the run")
        else:
            part.drop_all(f"only a linear warm-up and a cosine over the whole run are; {kind} is left out")
            continue
        part.went("type", "model.schedule (WarmupCosine)")
        part.agree("begin", "the cosine begins where the warm-up ends")
        part.agree("by_epoch", "the schedule is a share of the run")
        part.agree("convert_to_iter_based", "the rate changes in every step")
    ledger.put("model.schedule", {"class_path": "WarmupCosine", "init_args": args})
    if not parts:
        ledger.notes.append("It has no learning-rate schedule of a kind that is carried over: a cosine is used.")


def _hooks(ledger: Ledger, accumulate: int) -> None:
    hooks = ledger.section("default_hooks")
    logger, checkpoint = hooks.sub("logger"), hooks.sub("checkpoint")
    in_steps = "iterations / accumulation"
    logger.carry("interval", "trainer.log_every_n_steps", lambda value: max(1, int(value) // accumulate), in_steps)
    logger.agree("type", "Lightning's loggers")
    logger.agree("log_metric_by_epoch", "logged in steps")
    checkpoint.agree("type", "the section checkpoint")
    if checkpoint.get("by_epoch", True):
        checkpoint.drop("interval", "it counts epochs, and runs are counted in steps: checkpoint.every_n_train_steps")
        checkpoint.drop("by_epoch", "runs are counted in steps")
    else:
        target = "checkpoint.every_n_train_steps"
        checkpoint.carry("interval", target, lambda value: max(1, int(value) // accumulate), in_steps)
        checkpoint.agree("by_epoch", "saved in steps")
    checkpoint.drop("max_keep_ckpts", "the last checkpoint and the best checkpoint.save_top_k are kept")
    checkpoint.drop("save_optimizer", "it is kept, to resume runs; --checkpoint.save_weights_only=true leaves it out")
    for name in ("timer", "param_scheduler", "sampler_seed"):
        hooks.agree(name, "part of the trainer")
    custom = ledger.section("custom_hooks")
    for hook in custom.subs():
        hook.drop_all("answers in training come from data.val (overlays, trainer.val_check_interval), not from a hook")
    if not custom:
        ledger.section().agree("custom_hooks", "no hooks")


def _runtime(ledger: Ledger) -> None:
    root, env = ledger.section(), ledger.section("env_cfg")
    env.carry("cudnn_benchmark", "trainer.benchmark", bool)
    env.drop("mp_cfg", "the data module starts its workers itself")
    env.drop("dist_cfg", "trainer.strategy says how processes talk")
    random = ledger.section("randomness")
    if random.get("seed") is None:
        random.drop("seed", "none means a seed by chance there; here it is seed_everything, 0 if not given")
    else:
        random.carry("seed", "seed_everything", int)
    random.carry("deterministic", "trainer.deterministic", bool)
    root.drop("visualizer", "loggers are the trainer's (trainer.logger)")
    root.drop("vis_backends", "loggers are the trainer's (trainer.logger)")
    root.drop("log_level", "the command line has no levels of logging")
    root.drop("log_processor", "values are logged in steps")
    root.drop("launcher", "processes are started by the trainer (trainer.devices, trainer.strategy)")
    root.drop("work_dir", "runs are saved below --runs")
    root.drop("default_scope", "plugins are found by their class names")
    root.drop("custom_imports", "nothing is imported; plugin files are given with --plugins")
