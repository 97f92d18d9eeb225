"""Lists the checks of each socket, and runs all of them for one plugin."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sail_lightning import registry
from sail_lightning.errors import SailError, SailUsageError
from sail_lightning.interfaces import Attention, Backbone, Plugin, PromptEncoder, Teacher, Upsampler
from sail_lightning.plugin_check import making, model, sockets
from sail_lightning.plugin_check.check import Check, Fault, Subject

Checks = tuple[Callable[[Subject], None], ...]

MAKING: Checks = (making.makes_no_weights_before_build, making.can_be_made_again_from_its_arguments)
BUILDING: Checks = (making.publishes_its_sizes,)
COMPUTING: dict[type[Plugin], tuple[Checks, ...]] = {
    Attention: (
        (making.builds_in_bfloat16, sockets.has_no_weights, sockets.gives_the_shape_of_its_queries),
        (sockets.is_exact,),
    ),
    Backbone: (
        (
            making.builds_in_bfloat16,
            sockets.embeds_words,
            sockets.embeds_patches,
            sockets.embeds_no_patches,
            sockets.gives_logits_of_the_vocabulary,
        ),
        (sockets.reads_a_packed_row,),
        (sockets.keeps_packed_samples_apart, sockets.decodes_as_it_reads),
    ),
    Upsampler: (
        (making.builds_in_bfloat16, sockets.gives_mask_features_of_the_published_sizes),
        (sockets.takes_no_images, sockets.reads_what_it_computes),
    ),
    PromptEncoder: (
        (making.builds_in_bfloat16, sockets.keeps_the_shape_of_the_sequence),
        (sockets.leaves_a_batch_without_regions_alone,),
    ),
    Teacher: ((sockets.is_frozen, sockets.gives_features_of_its_channels),),  # an expert may keep its own precision
}
TRAINING: Checks = (model.gives_every_parameter_a_gradient,)
IN_A_MODEL: Checks = (
    model.gives_zero_gradients_without_images,
    model.computes_in_bfloat16,
    model.agrees_under_autocast,
    model.comes_back_from_a_checkpoint,
    model.comes_back_from_a_model_folder,
)


@dataclass(frozen=True)
class Result:
    """The result of one check: `ok`, a `fault` with its sentence, or `not run` because of a fault in an earlier
    stage."""

    check: str
    state: Literal["ok", "fault", "not run"]
    fault: str = ""


def stages_of(socket: type[Plugin]) -> tuple[tuple[Check, ...], ...]:
    """Returns the checks of a socket's plugins in stages; those of a stage are meaningful only if all earlier ones
    pass."""
    stages = (MAKING, BUILDING, *COMPUTING[socket], TRAINING, IN_A_MODEL)
    return tuple(tuple(Check(function) for function in stage) for stage in stages)


def checks_of(socket: type[Plugin]) -> tuple[Check, ...]:
    """Returns all checks of a socket's plugins, in order."""
    return tuple(check for stage in stages_of(socket) for check in stage)


def check_plugin(
    name: str,
    make: Callable[[], Plugin] | None = None,
    device: str = "cpu",
    tell: Callable[[Result], Any] = lambda result: None,
) -> list[Result]:
    """Runs all checks of a registered plugin.

    Args:
        name: The plugin's class name.
        make: Makes the plugin, each time another one; None makes it without arguments.
        device: Device on which it is checked, `cpu` or `cuda`.
        tell: Called with each result as soon as it is available.

    Returns:
        One result for each check of its socket, in order.

    Raises:
        SailUsageError: No plugin of a socket has this name.
    """
    found = registry.find(name, registry.SOCKETS)
    if found is None:
        kinds = ", ".join(registry.SWAP_POINTS[base].name for base in registry.SOCKETS)
        fix = "load your file with --plugins FILE, or registry.load(FILE)"
        raise SailUsageError(f"no plugin named {name} (checks are for {kinds}); {fix}")
    socket, cls = found
    subject = Subject(make or cls, device)
    results: list[Result] = []
    sound = True
    for stage in stages_of(socket):
        begun = len(results)
        for check in stage:
            results.append(_result(check, subject, cls) if sound else Result(check.name, "not run"))
            tell(results[-1])
        sound = sound and all(result.state == "ok" for result in results[begun:])
    return results


def _result(check: Check, subject: Subject, cls: type) -> Result:
    try:
        check(subject)
    except (Fault, SailError) as fault:
        return Result(check.name, "fault", str(fault))
    except Exception as error:
        return Result(check.name, "fault", _described(error, cls))
    return Result(check.name, "ok")


def _described(error: Exception, cls: type) -> str:
    """Returns an unexpected error of the plugin as one sentence, with its line in the plugin's own file."""
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    own = inspect.getsourcefile(cls)
    place = next((frame for frame in reversed(frames) if frame.filename == own), frames[-1])
    message = " ".join(str(error).split())[:300]
    return f"{cls.__name__} raises {type(error).__name__}: {message} ({place.filename}, line {place.lineno})"
