"""Templates of questions and answers for the training sets; `{}` stands for the phrase, region or text.

Their number and form are those of the official recipe; the wordings are our own.
"""

from __future__ import annotations

from sail_lightning.sequence.chat_template import SEG

_SEGMENT = (
    "Can you segment {} in this image",
    "Please segment {} in this image",
    "Could you segment {} in this image",
    "Segment {} in this image",
    "What is {} in this image? Please respond with segmentation mask",
    "Where is {} in this image? Please respond with segmentation mask",
    "Could you provide a segmentation mask for {} in this image",
    "Please output the segmentation mask of {} in this image",
)
SEGMENT = tuple(question + end for question in _SEGMENT for end in ("", "?" if question.startswith("C") else "."))
"""The 16 questions for the object of a phrase: eight wordings, with and without a final punctuation mark."""
SEGMENT_ANSWERS = (
    f"It is {SEG}.",
    f"Sure, {SEG}.",
    f"Sure, it is {SEG}.",
    f"Sure, the segmentation result is {SEG}.",
    f"{SEG}.",
)
NO_TARGET_ANSWER = f"No target {SEG}."
"""The answer if the phrase has no target; its mask is empty."""
INSTANCE_MODE = " Segmentation in the instance mode."
SEMANTIC_MODE = " Segmentation in the semantic mode."
MASK_PLEASE = " Please respond with segmentation mask."
REASON_LONG = "{} Please output segmentation mask."
REASON_SHORT = "What is {} in this image? Please output segmentation mask."
GROUNDED = (
    "Could you please give me a brief description of the image? Please respond with interleaved segmentation masks for "
    "the corresponding parts of the answer.",
    "Can you provide a brief description of this image? Please output with interleaved segmentation masks for the "
    "corresponding phrases.",
    "Please briefly describe the contents of the image. Please respond with interleaved segmentation masks for the "
    "corresponding parts of the answer.",
    "Could you give a brief explanation of what can be found within this picture? Please output with interleaved "
    "segmentation masks for the corresponding phrases.",
    "Could you give me a brief explanation of this picture? Please respond with interleaved segmentation masks for the "
    "corresponding phrases.",
    "Could you provide me with a brief analysis of this photo? Please output with interleaved segmentation masks for "
    "the corresponding parts of the answer.",
)
"""The 6 questions for a grounded caption."""
BY_DESCRIPTION = (
    "Please segment the object according to the description: {}",
    "Segment the object that fits the following description: {}",
    "Can you segment the object according to the description: {}",
    "Please give the segmentation mask of the object with this description: {}",
)
"""The 4 questions for the object of a longer description."""
_DESCRIBE = (
    "Can you provide me with a detailed description of the region {}",
    "Please give a detailed description of the region {}",
    "Describe the region {} in detail",
    "What can you tell me about the region {} in detail",
    "I'm curious about the region {}. Could you describe it in detail",
    "What can you see in the region {}? Please describe it in detail",
    "I'd like to know more about the region {}. Please give a detailed description",
    "Could you describe the region {} in the image in great detail",
    "Give a comprehensive description of the region {} in the picture",
    "Explain in detail what is shown in the region {}",
    "Please tell me everything about the region {} of this image",
    "What is in the region {}? Answer with a detailed description",
    "Help me to understand the region {} in detail",
    "Please look at the region {} and describe it with all its details",
    "Share a detailed rundown of the region {} with me",
)
DESCRIBE = tuple(question + end for question in _DESCRIBE for end in ("", "."))
"""The 30 questions for a description of a region; benchmarks ask the first."""
DESCRIBE_IN_FULL = " Please provide as detailed as possible."
DESCRIBE_SHORT = "Can you provide me with a short description of {}?"
CLASSIFY = (
    "What is {}? Please select the answer from the candidate categories.",
    "What is the category of {}? Please select the answer from the candidate categories.",
)
CANDIDATES = " The candidate categories: {}."
SHORT_ANSWER = " Answer the question using a single word or phrase."
NOT_THERE = "{} is not in the image."
"""The answer about a negative prompt, an id that no region has."""
