"""Uploads model folders to the Hugging Face Hub, when asked to."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from sail_lightning.errors import SailError

WEIGHTS = "model*.safetensors*"


def push(folder: Path, repo_id: str, private: bool = True, token: str | None = None, message: str = "") -> str:
    """Uploads a model folder to the Hugging Face Hub; weight files of other names in the repository are removed.

    Args:
        folder: A folder that `save_folder` wrote.
        repo_id: `owner/name`; made if missing.
        private: Whether a repository that is made is private; one that exists stays as it is.
        token: Token of the account; None takes that of `hf auth login`.
        message: Message of the commit.

    Returns:
        The address of the repository.

    Raises:
        SailError: There is no network, no login or no right to write, or the name is not valid.
    """
    api = HfApi(token=token)
    try:
        address = str(api.create_repo(repo_id, private=private, exist_ok=True))
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=message or "Upload model", delete_patterns=WEIGHTS
        )
    except OfflineModeIsEnabled:
        raise SailError(f"cannot push to {repo_id}: HF_HUB_OFFLINE is set; unset it") from None
    except (HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
        fix = "check the name (owner/model), the network and the login (hf auth login)"
        raise SailError(f"cannot push to {repo_id}: {reason}; {fix}") from error
    return address
