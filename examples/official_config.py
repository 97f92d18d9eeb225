# ruff: noqa: C408, RUF005
# sail-lightning configs import examples/official_config.py --out mine.yaml
#
# A config in the style of Pixel-SAIL's official ones, for mmengine: the mixture of 20 data sets, with two teachers.
# None of the packages that it imports (mmdet, projects, third_parts, xtuner) needs to be installed.
import torch
from mmdet.models import CrossEntropyLoss, DiceLoss
from mmengine.hooks import CheckpointHook, DistSamplerSeedHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.optim import AmpOptimWrapper, CosineAnnealingLR, LinearLR
from projects.ST.dataset.COCO_Panoseg_Dataset import COCOSegmDataset
from projects.ST.dataset.COCO_Panoseg_Dataset_Semantic import COCOSemanticSegmDataset
from projects.ST.dataset.COCOVisualPrompt_Dataset import COCOVisualPromptDataset
from projects.ST.dataset.collect_fns import st_collate_fn
from projects.ST.dataset.GLaMM_Dataset import (
    GlammFlickerDataset,
    GlammGrandfDataset,
    GlammOpenpsgDataset,
    GlammRefcocogDataset,
)
from projects.ST.dataset.GRefCOCO_Dataset import GRefCoCoDataset
from projects.ST.dataset.MUSE_Dataset import MuseDataset
from projects.ST.dataset.OspreyVisualPrompt_Dataset import (
    OspreyDataset,
    OspreyDescriptionDataset,
    OspreyShortDescriptionDataset,
)
from projects.ST.dataset.PixeCap_Dataset import PixelCapSegDataset
from projects.ST.dataset.PixeCapVisualPrompt_Dataset import PixelCapVisualPromptDataset
from projects.ST.dataset.RefCOCO_Dataset import ReferSegmDataset
from projects.ST.dataset.vqa_dataset import LLaVADataset
from projects.ST.hooks.evaluation_chat_hook import EvaluateChatHook_ST
from projects.ST.models.models_modeling_qwen2mm_mmrope import Qwen2MMmropeForCausalLM
from projects.ST.models.sa2va_ST import Sa2VASTModel
from third_parts.sam2 import SAM2
from torch.optim import AdamW
from transformers import AutoImageProcessor, AutoTokenizer, Mask2FormerForUniversalSegmentation
from xtuner.dataset import ConcatDataset
from xtuner.dataset.samplers import LengthGroupedSampler
from xtuner.engine.runner import TrainLoop
from xtuner.utils import PROMPT_TEMPLATE

base = "pretrained/decoder-0.5B/"
pretrained_pth = "work_dirs/earlier/iter_100.pth"  # set, and given to nothing
prompt_template = PROMPT_TEMPLATE.qwen_chat
max_length = 8192
size = 16
batch_size = 1
accumulative_counts = 8
max_epochs = 1
lr = 4e-5
warmup_ratio = 0.05
prompts = 15
tokens = [f"<Prompt{number}>" for number in range(prompts)]
tokens.append("<NO_Prompt>")
special_tokens = ["[SEG]", "<p>", "</p>"] + tokens
tokenizer = dict(
    type=AutoTokenizer.from_pretrained,
    pretrained_model_name_or_path=base,
    trust_remote_code=True,
    padding_side="right",
)
teacher = "pretrained/mask2former-swin-large-coco-panoptic"

model = dict(
    type=Sa2VASTModel,
    single_transformer=dict(
        type=Qwen2MMmropeForCausalLM.from_pretrained,
        pretrained_model_name_or_path=base,
        torch_dtype=torch.bfloat16,
        use_cache=False,
        attn_implementation="sdpa",
    ),
    tokenizer=tokenizer,
    special_tokens=special_tokens,
    seg_hidden_states=512,
    patch_size=size,
    seg_pred_down_ratio=4,
    visual_prompt_nums=prompts,
    loss_mask=dict(type=CrossEntropyLoss, use_sigmoid=True, reduction="mean", loss_weight=2.0),
    loss_dice=dict(
        type=DiceLoss, use_sigmoid=True, activate=True, reduction="mean", naive_dice=True, eps=1.0, loss_weight=0.5
    ),
    torch_dtype=torch.bfloat16,
    pretrained_pth=None,
    loss_sample_points=True,
    num_points=12544,
    template=prompt_template,
    bs=batch_size,
    use_distill=True,
    mask2former_model=dict(
        type=Mask2FormerForUniversalSegmentation.from_pretrained, pretrained_model_name_or_path=teacher
    ),
    mask2former_processor=dict(type=AutoImageProcessor.from_pretrained, pretrained_model_name_or_path=teacher),
    sam2_model=dict(type=SAM2, cfg_path="sam2.1_hiera_l.yaml", ckpt_path="sam2.1_hiera_large.pt"),
    distillation_loss_weight=0.5,
)

common = dict(
    tokenizer=tokenizer,
    special_tokens=special_tokens,
    prompt_template=prompt_template,
    max_length=max_length,
    patch_size=size,
    add_cls=False,
)


def refer(name, split):
    return dict(
        type=ReferSegmDataset,
        data_root=f"data/ref_seg/{name}",
        data_prefix=dict(img_path="coco2014/train2014/"),
        ann_file="instances.json",
        split_file=f"refs({split}).p",
        num_classes_per_sample=5,
        **common,
    )


refcoco, refcoco_plus, refcocog = refer("refcoco", "unc"), refer("refcoco+", "unc"), refer("refcocog", "umd")
grefcoco = dict(refer("grefs", "unc"), type=GRefCoCoDataset, split_file="grefs(unc).json")

coco = dict(
    image_folder="data/coco/Images/train2017",
    pano_rgb_folder="data/coco/Annotations/panoptic_train2017/",
    pano_json="data/coco/Annotations/panoptic_train2017.json",
    num_classes_per_sample=5,
    **common,
)
classes = "projects/ST/dataset/coco_names.txt"
coco_instance = dict(coco, type=COCOSegmDataset, class_txt=classes)
coco_semantic = dict(coco, type=COCOSemanticSegmDataset, class_txt=classes)
coco_prompts = dict(coco, type=COCOVisualPromptDataset, class_txt=classes, prompt_numbers=prompts)
pix2cap = dict(coco, type=PixelCapSegDataset, pano_json="data/pixel2cap/pix2cap_coco_train.json")
pix2cap_prompts = dict(pix2cap, type=PixelCapVisualPromptDataset, prompt_numbers=prompts, repeats=10)


def captions(kind, file, images, repeats=1):
    root = "./data/glamm_data/"
    return dict(type=kind, image_folder=root + images, data_path=root + file, repeats=repeats, **common)


grandf = captions(GlammGrandfDataset, "annotations/GranDf_HA_GCG_train.json", "images/grandf/train/", 10)
openpsg = captions(GlammOpenpsgDataset, "annotations/OpenPsgGCG_train.json", "images/coco2017/")
refcocog_gcg = captions(GlammRefcocogDataset, "annotations/RefCOCOg_GCG_train.json", "images/coco2014/train2014/")
flickr = captions(GlammFlickerDataset, "annotations/flickr_mergedGT_GCG_train.json", "images/flickr30k/Flickr30K/")

muse = dict(
    type=MuseDataset,
    train2014_image_folder="data/coco/train2014/",
    train2017_image_folder="data/coco/train2017/",
    val2017_image_folder="data/coco/val2017/",
    json_file="data/muse/MUSE_train.json",
    num_classes_per_sample=5,
    **common,
)


def osprey(kind, file, **more):
    return dict(
        type=kind,
        image_folder=["data/coco/train2014/", "data/coco/train2017/"],
        data_path=f"data/osprey-724k/{file}.json",
        num_classes_per_sample=5,
        prompt_numbers=prompts,
        **common,
        **more,
    )


osprey_conversation = osprey(OspreyDataset, "osprey_conversation")
osprey_part = osprey(OspreyDataset, "osprey_part_level")
osprey_posneg = osprey(OspreyDataset, "osprey_lvis_positive_negative")
osprey_short = osprey(OspreyShortDescriptionDataset, "osprey_short_form")
osprey_detail = osprey(OspreyDescriptionDataset, "osprey_detail_description", repeats=10)

llava = dict(
    type=LLaVADataset,
    data_path="data/llava_data/llava_v1_5_mix665k.json",
    image_folder="data/llava_data/llava_images/",
    **common,
)
llava_again = dict(llava, data_path="data/llava_data/more.json")  # in no list

train_dataset = dict(
    type=ConcatDataset,
    datasets=[
        coco_semantic,
        coco_instance,
        openpsg,
        flickr,
        refcocog_gcg,
        grandf,
        muse,
        *[pix2cap] * 2,
        *[refcoco, refcoco_plus, refcocog] * 4,
        *[grefcoco] * 3,
        llava,
        pix2cap_prompts,
        osprey_detail,
        osprey_short,
        osprey_conversation,
        osprey_part,
        osprey_posneg,
        coco_prompts,
    ],
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=4,
    dataset=train_dataset,
    sampler=dict(
        type=LengthGroupedSampler,
        length_property="modality_length",
        per_device_batch_size=batch_size * accumulative_counts,
    ),
    collate_fn=dict(type=st_collate_fn),
)

optim_wrapper = dict(
    type=AmpOptimWrapper,
    optimizer=dict(type=AdamW, lr=lr, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1, error_if_nonfinite=False),
    accumulative_counts=accumulative_counts,
    loss_scale="dynamic",
    dtype="bfloat16",
)
param_scheduler = [
    dict(
        type=LinearLR,
        start_factor=1e-5,
        by_epoch=True,
        begin=0,
        end=warmup_ratio * max_epochs,
        convert_to_iter_based=True,
    ),
    dict(
        type=CosineAnnealingLR,
        eta_min=0.0,
        by_epoch=True,
        begin=warmup_ratio * max_epochs,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type=TrainLoop, max_epochs=max_epochs)

custom_hooks = [dict(type=EvaluateChatHook_ST, tokenizer=tokenizer, every_n_iters=500, evaluation_inputs=["?"])]
default_hooks = dict(
    timer=dict(type=IterTimerHook),
    logger=dict(type=LoggerHook, log_metric_by_epoch=False, interval=10),
    param_scheduler=dict(type=ParamSchedulerHook),
    checkpoint=dict(type=CheckpointHook, save_optimizer=False, by_epoch=False, interval=5000, max_keep_ckpts=2),
    sampler_seed=dict(type=DistSamplerSeedHook),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
visualizer = None
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=None, deterministic=False)
log_processor = dict(by_epoch=False)
