"""Uploads model folders to the Hugging Face Hub, when asked to."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from sail_lightning.errors import SailError

WEIGHTS = "model*.safetensors*"


def push(folder: Path, repo_id: str, private: bool = True, token: str | None = None, message: str = "") -> str:
    """Uploads a model folder; weight files that are there under other names are removed.

    Args:
        folder: A folder that `save_folder` wrote.
        repo_id: `owner/name`; made if missing.
        private: Who sees a repository that is made; one that exists stays as it is.
        token: Token of the account; None takes that of `hf auth login`.
        message: Message of the commit.

    Returns:
        the address of the repository.

    Raises:
        SailError: no network, no login, no right to write, or a name that cannot be.
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
