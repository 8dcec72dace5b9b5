"""Licences of installed distributions, and licence texts as SPDX identifiers."""

from __future__ import annotations

import re
from importlib import metadata

from packaging.requirements import Requirement

# What authors write instead of an SPDX identifier (https://spdx.org/licenses), lower case.
_ALIASES = {
    "apache 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "2-clause bsd": "BSD-2-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0",
}
_SPDX = re.compile(
    r"\b(0BSD|AGPL-[\d.]+|Apache-2\.0|BSD-[234]-Clause|BSL-1\.0|CC0-1\.0|CC-BY(?:-[A-Z]{2})*-[\d.]+|EPL-[\d.]+|L?GPL-[\d.]+|ISC|"
    r"LLVM-exception|MIT-0|MIT-CMU|MIT|MPL-2\.0|ODbL-1\.0|PSF-2\.0|Unlicense|Zlib)(?![\w-])"
)


def licence_ids(text: str | None) -> list[list[str | None]]:
    """The alternatives (``OR``) of a licence text, each the list of identifiers that all apply; None for a part that is not recognised.

    Parts are separated by ``;``, ``AND`` or ``WITH``: "MIT; upstream CC-BY-4.0" asks for both.
    """
    if not text or not text.strip():
        return [[None]]
    alias = _ALIASES.get(text.strip().lower())
    if alias:
        return [[alias]]
    return [
        [_identifier(part) for part in re.split(r";|,|\bAND\b|\bWITH\b", alternative) if part.strip(" ()")]
        for alternative in re.split(r"\bOR\b", text)
    ]


def _identifier(part: str) -> str | None:
    alias = _ALIASES.get(part.strip().lower())
    if alias:
        return alias
    found = _SPDX.findall(part)
    return found[0] if len(set(found)) == 1 else None


def distribution_licences(root: str = "joulewise") -> dict[str, str | None]:
    """Licence of every distribution that ``root`` needs without extras, itself among them; None where its metadata name none.

    The fields of the core metadata are asked in this order: ``License-Expression``, the trove classifiers, a one-line ``License``.
    """
    found: dict[str, str | None] = {}
    waiting = [root]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            found[name] = None
            continue
        found[name] = _stated(distribution)
        needs = (Requirement(line) for line in distribution.requires or [])
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return dict(sorted(found.items()))


def _stated(distribution: metadata.Distribution) -> str | None:
    about = distribution.metadata
    if about.get("License-Expression"):
        return str(about["License-Expression"])
    named = [line.rsplit("::", 1)[-1].strip() for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    known = [name for name in named if name.lower() in _ALIASES]
    if known:
        return " OR ".join(_ALIASES[name.lower()] for name in known)
    text = (about.get("License") or "").strip()
    return text if text and "\n" not in text and len(text) < 80 else None
