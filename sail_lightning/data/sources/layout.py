"""Default paths of the public data sets below `$SAIL_DATA`, shared by all sources; a config may give others.

The official code looked for the same images in different folders, and replaced samples of missing ones (E34).
"""

from __future__ import annotations

COCO_TRAIN2014 = "coco/train2014"
COCO_VAL2014 = "coco/val2014"
COCO_TRAIN2017 = "coco/train2017"
COCO_VAL2017 = "coco/val2017"
PANOPTIC_JSON = "coco/annotations/panoptic_train2017.json"
PANOPTIC_PNGS = "coco/annotations/panoptic_train2017"
REFERRING = "ref_seg"
GLAMM_ANNOTATIONS = "glamm/annotations"
GLAMM_IMAGES = "glamm/images"
MUSE = "muse/MUSE_train.json"
PIX2CAP = "pix2cap/pix2cap_coco_train.json"
OSPREY = "osprey"
SAM_PROMPTS = "sam/sam_prompts.json"
SAM_IMAGES = "sam/images"
REASON_SEG = "reason_seg"
LLAVA = "llava/llava_v1_5_mix665k.json"
LLAVA_IMAGES = "llava/images"
PERBENCH = "perbench"
REGION_CAPTIONS = "region_caption/finetune_refcocog_val_with_mask.json"
