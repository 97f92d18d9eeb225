"""A plugin that breaks its contract is refused in one sentence where the model calls it, in training and answering."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import broken_plugins as broken
import pytest
import torch
from tiny_sail import BACKBONE, packed, picture, records, tiny
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sail_lightning.errors import SailError
from sail_lightning.interfaces import Dims, Upsampler
from sail_lightning.model.model import FeatureGroup
from sail_lightning.plugins.backbones import SailQwen
from sail_lightning.plugins.upsamplers import DeconvUpsampler
from sail_lightning.sample import Box


class SlowStepBackbone(broken.SmallQwen):
    """Wrong only where it decodes."""

    def decode(self, embeddings: Tensor, positions: Tensor, cache: Any) -> Tensor:
        return super().decode(embeddings, positions, cache)[:, 1:]


class StrippedUpsampler(DeconvUpsampler):
    """Wrong only where it applies the head by strips."""

    def apply_head(self, features: Tensor, head: Any) -> Tensor:
        return super().apply_head(features, head)[..., 1:]


class ThinStripsUpsampler(DeconvUpsampler):
    """Gives its head fewer channels than it published."""

    def apply_head(self, features: Tensor, head: Any) -> Tensor:
        return head(self(features)[:, 1:])


class TupleUpsampler(broken.Folded):
    def forward(self, features: Tensor) -> Any:
        return super().forward(features), None


class OddStrideUpsampler(broken.Folded):
    def build(self, dims: Dims) -> Dims:
        return replace(super().build(dims), feature_stride=3)


class FractionUpsampler(broken.Folded):
    def build(self, dims: Dims) -> Dims:
        return replace(super().build(dims), feature_channels=dims.hidden_size / 2)  # type: ignore[arg-type]


class BoldBackbone(broken.SmallQwen):
    def build(self, dims: Dims) -> Dims:
        return replace(super().build(dims), vocab_size=7)


class OddResizeBackbone(broken.SmallQwen):
    resize_mode = "shortest"  # type: ignore[assignment]


class SizelessBackbone(broken.SmallQwen):
    def build(self, dims: Dims) -> Dims:
        super().build(dims)
        return dims


class SilentAttention(broken.SDPAAttention):
    def build(self, dims: Dims) -> Dims:
        return None  # type: ignore[return-value]


class SilentTeacher(broken.Pooled):
    def build(self, dims: Dims) -> Dims:
        return None  # type: ignore[return-value]


class SilentPrompts(broken.PromptInjection):
    def build(self, dims: Dims) -> Dims:
        super().build(dims)
        return None  # type: ignore[return-value]


AT_BUILD: list[tuple[Callable[[], dict[str, Any]], str]] = [
    (
        lambda: {"upsampler": broken.SilentUpsampler()},
        "SilentUpsampler.build returned nothing, not the sizes of the model; "
        "end it with `return replace(dims, feature_channels=..., feature_stride=...)`",
    ),
    (
        lambda: {"upsampler": broken.SizelessUpsampler()},
        "SizelessUpsampler.build published feature_channels 0; it must be a whole number of 1 or more",
    ),
    (
        lambda: {"upsampler": FractionUpsampler()},
        "FractionUpsampler.build published feature_channels 16.0; it must be a whole number of 1 or more",
    ),
    (
        lambda: {"upsampler": OddStrideUpsampler()},
        "OddStrideUpsampler.build published feature_stride 3, which does not divide the patch size 8; "
        "choose one that does",
    ),
    (
        lambda: {"prompt_encoder": broken.BoldPrompts()},
        "BoldPrompts.build changed hidden_size from 32 to 64, which is another plugin's; leave it",
    ),
    (
        lambda: {"prompt_encoder": SilentPrompts()},
        "SilentPrompts.build returned nothing, not the sizes of the model; end it with `return dims`",
    ),
    (
        lambda: {"backbone": SizelessBackbone()},
        "SizelessBackbone.build published hidden_size 0; it must be a whole number of 1 or more",
    ),
    (lambda: {"backbone": BoldBackbone()}, "to 7, which is the tokenizer's; leave it"),
    (
        lambda: {"backbone": OddResizeBackbone()},
        "OddResizeBackbone has resize_mode 'shortest'; it must be one of longest, area",
    ),
    (
        lambda: {"backbone": SailQwen(**BACKBONE, attention=SilentAttention())},
        "SilentAttention.build returned nothing, not the sizes of the model; end it with `return dims`",
    ),
    (
        lambda: {"teachers": {"expert": SilentTeacher()}},
        "SilentTeacher.build returned nothing, not the sizes of the model; end it with `return dims`",
    ),
    (
        lambda: {"teachers": {"expert": broken.NamelessTeacher()}},
        "NamelessTeacher has channels 0; it must be a whole number of 1 or more",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), AT_BUILD)
def test_a_plugin_that_is_built_wrongly_is_refused_at_start(
    changes: Callable[[], dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(SailError) as raised:
        tiny(**changes())
    assert str(raised.value).endswith(sentence)


WHEN_TRAINED: list[tuple[Callable[[], dict[str, Any]], str]] = [
    (lambda: {"backbone": broken.WideWordsBackbone()}, "WideWordsBackbone.embed_tokens returned"),
    (lambda: {"backbone": broken.LonePatchBackbone()}, "LonePatchBackbone.embed_patches returned"),
    (lambda: {"backbone": broken.LastStateBackbone()}, "LastStateBackbone.forward returned"),
    (lambda: {"backbone": broken.ShortHeadBackbone()}, "ShortHeadBackbone.logits returned"),
    (
        lambda: {"backbone": SailQwen(**BACKBONE, attention=broken.FlatAttention())},
        "FlatAttention.forward returned a tensor of shape",
    ),
    (lambda: {"prompt_encoder": broken.AppendingPrompts(4)}, "AppendingPrompts.forward returned"),
    (lambda: {"upsampler": broken.NarrowUpsampler()}, "NarrowUpsampler.forward returned"),
    (lambda: {"upsampler": broken.SmallUpsampler()}, "SmallUpsampler.forward returned"),
    (lambda: {"upsampler": TupleUpsampler()}, "TupleUpsampler.forward returned an object of type tuple"),
    (lambda: {"upsampler": StrippedUpsampler()}, "StrippedUpsampler.apply_head returned"),
    (lambda: {"upsampler": ThinStripsUpsampler()}, "ThinStripsUpsampler.apply_head gave its head features of shape"),
    (lambda: {"teachers": {"expert": broken.ThinTeacher()}}, "ThinTeacher.forward returned"),
    (lambda: {"teachers": {"expert": broken.FlatTeacher()}}, "FlatTeacher.forward returned"),
    (lambda: {"teachers": {"expert": broken.ByteTeacher()}}, "ByteTeacher.forward returned a tensor of torch.uint8"),
]


@pytest.mark.parametrize(("changes", "sentence"), WHEN_TRAINED)
def test_a_wrong_output_is_refused_in_training(changes: Callable[[], dict[str, Any]], sentence: str) -> None:
    model = tiny(**changes())
    with pytest.raises(SailError) as raised:
        model.losses(packed(model, records()))
    assert str(raised.value).startswith(sentence)
    assert "expected" in str(raised.value) and "\n" not in str(raised.value)


def test_a_dtype_of_its_own_is_refused_in_a_model_of_bfloat16() -> None:
    model = tiny(upsampler=broken.SinglePrecisionUpsampler()).to(torch.bfloat16)
    sentence = (
        "SinglePrecisionUpsampler.forward returned a tensor of torch.float32, but torch.bfloat16 is expected, "
        "the dtype of its input"
    )
    with pytest.raises(SailError, match=sentence):
        model.losses(packed(model, records()))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone": SlowStepBackbone}, "SlowStepBackbone.decode returned"),
        ({"backbone": broken.LastStateBackbone}, "LastStateBackbone.forward returned"),
        ({"backbone": broken.ShortHeadBackbone}, "ShortHeadBackbone.logits returned"),
    ],
)
def test_a_wrong_output_is_refused_in_answering(changes: dict[str, Any], sentence: str) -> None:
    model = tiny(**{name: plugin() for name, plugin in changes.items()})
    with pytest.raises(SailError) as raised:
        model.predict(picture(20, 30), "please segment <Prompt0>.", [Box(1, 2, 15, 14)])
    assert str(raised.value).startswith(sentence)


# -- `super().__init__()` ---------------------------------------------------------------------------------------------


class LooseUpsampler(broken.Folded):
    def __init__(self) -> None:
        self.channels = 6


class EarlyUpsampler(broken.Folded):
    def __init__(self) -> None:
        self.fold = torch.nn.Linear(2, 2)


class ChildUpsampler(LooseUpsampler):
    def __init__(self) -> None:
        super().__init__()


class ErringUpsampler(broken.Folded):
    def __init__(self) -> None:
        super().__init__()
        raise AttributeError("its own fault")


@pytest.mark.parametrize("cls", [LooseUpsampler, EarlyUpsampler, ChildUpsampler])
def test_a_plugin_that_forgets_to_initialise_its_parent_is_refused(cls: type[Upsampler]) -> None:
    sentence = rf"{cls.__name__}.__init__ must begin with `super\(\).__init__\(\)`, which it does not call"
    with pytest.raises(SailError, match=sentence):
        cls()


def test_a_fault_of_the_plugins_own_code_stays_what_it_is() -> None:
    with pytest.raises(AttributeError, match="its own fault"):
        ErringUpsampler()


# -- checks cost nothing ----------------------------------------------------------------------------------------------


def test_checks_ask_no_tensor_for_its_values() -> None:
    """Fake tensors have none."""
    model = tiny().model
    with FakeTensorMode(allow_non_fake_inputs=True):
        logits = model.head(torch.zeros(5, 32))
        features = model.upsample(FeatureGroup((0, 1), torch.zeros(2, 32, 3, 5)), ())
    assert logits.shape == (5, model.dims.vocab_size)
    assert features.shape == (2, model.dims.feature_channels, 6, 10)


def test_checks_break_no_compiled_graph() -> None:
    model = tiny().model
    hidden = torch.randn(5, 32)
    compiled = torch.compile(lambda states: model.head(states), backend="eager", fullgraph=True)
    assert torch.equal(compiled(hidden), model.head(hidden))
