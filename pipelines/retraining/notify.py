"""Telling people: a JSON POST whose ``text`` Slack and its likes show. A notification that fails is reported and fails nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests


def notify(url_file: Path | None, message: dict[str, Any], timeout_s: float) -> str:
    """POST ``message`` to the URL in ``url_file``; returns ``sent``, ``nobody to tell``, or what went wrong.

    The URL is a secret and never part of the answer.

    A run killed after sending sends again when it resumes: ``message["id"]`` tells the two apart from two retrainings.
    """
    if url_file is None:
        return "nobody to tell"
    try:
        url = url_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        return f"failed: {url_file} cannot be read ({type(error).__name__})"
    if not url.startswith(("https://", "http://")):
        return f"failed: {url_file} holds no http(s) URL"
    try:
        answer = requests.post(url, json=message, timeout=timeout_s, allow_redirects=False)
    except requests.RequestException as error:
        return f"failed: {type(error).__name__}"
    return "sent" if answer.ok and not answer.is_redirect else f"failed: the webhook answered {answer.status_code}"
