"""``python -m pipelines.keys``: make, rotate and revoke signing keys, revoke versions, sign a version again."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from omegaconf import DictConfig, OmegaConf

from pipelines.cli import hydra_command
from registry.keys import Trust, TrustError, create_trust, read_trust, revoke, rotate, short, trust_folder
from registry.loading import VerificationError
from registry.manifest import PACKAGE_TAG
from registry.mlflow_client import open_client, quiet
from registry.resigning import resign
from telemetry.errors import InputError


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _create(cfg: DictConfig, folder: Path) -> None:
    sigstore = None if cfg.sigstore is None else OmegaConf.to_container(cfg.sigstore, resolve=True)
    if sigstore is not None and not (isinstance(sigstore, dict) and {"identity", "oidc_issuer"} <= sigstore.keys()):
        raise InputError(f"{sigstore}", where="sigstore", allowed="{identity: ..., oidc_issuer: ...}, perhaps trust_config_file")
    trust = create_trust(folder, note=str(cfg.note), private_key_file=_private_key(cfg), sigstore=sigstore)  # type: ignore[arg-type]
    print(f"key {short(trust.active)} signs; {folder}: keep private/ where models are registered, copy the rest to where they are loaded")


def _rotate(cfg: DictConfig, folder: Path) -> None:
    trust = rotate(folder, overlap_days=float(cfg.overlap_days), note=str(cfg.note), private_key_file=_private_key(cfg))
    print(f"key {short(trust.active)} signs from now on; copy trust.json, revoked.json and public/ to where models are loaded")


def _private_key(cfg: DictConfig) -> str | None:
    return None if cfg.private_key_file is None else str(Path(cfg.private_key_file).absolute())


def _revoke(cfg: DictConfig, folder: Path) -> None:
    keys, versions, manifests = ([_text(cfg[name])] if cfg[name] is not None else [] for name in ("key", "version", "manifest"))
    if not (keys or versions or manifests):
        raise InputError("nothing named", where="revoke", allowed="key=, version=NAME:NUMBER or manifest=SHA256")
    for version in versions:
        manifests.append(_manifest_of(cfg, str(version)))
    done = revoke(folder, reason=str(cfg.reason), keys=tuple(keys), versions=tuple(versions), manifests=tuple(manifests))  # type: ignore[arg-type]
    print(f"revoked; list number {done.serial}. It counts here from the next load on; copy it and trust.json to loaders")


def _manifest_of(cfg: DictConfig, version: str) -> str:
    name, colon, number = version.rpartition(":")
    if not colon:
        raise InputError(f"'{version}'", where="version", allowed="NAME:NUMBER")
    try:
        with quiet():
            return str(open_client(cfg.registry.tracking_uri).get_model_version(name, number).tags[PACKAGE_TAG])
    except (MlflowException, KeyError) as error:
        raise InputError(f"no version {version} with a package", where="version") from error


def _list(cfg: DictConfig, folder: Path) -> None:
    trust = read_trust(folder)
    for key in trust.keys.values():
        print(
            f"{short(key.key_id)}  from {key.valid_from}  until {key.valid_until or 'rotated':25}  {_state(trust, key.key_id)}  {key.note}"
        )
    revoked = trust.revoked
    for kind, table in (("key", revoked.keys), ("version", revoked.versions), ("manifest", revoked.manifests)):
        for name, reason in table.items():
            print(f"revoked {kind} {name if kind == 'version' else short(name)}: {reason}")


def _state(trust: Trust, key_id: str) -> str:
    if key_id == trust.active:
        return "signs"
    try:
        trust.usable(key_id)
    except TrustError:
        return "refused"
    return "verifies"


def _sign(cfg: DictConfig, folder: Path) -> None:
    if cfg.model is None or cfg.version is None:
        raise InputError("no version named", where="sign", allowed="model=NAME version=NUMBER")
    token = None if cfg.identity_token_file is None else Path(cfg.identity_token_file)
    client = open_client(cfg.registry.tracking_uri)
    key_id = resign(client, str(cfg.model), str(cfg.version), folder, adopt=bool(cfg.adopt), identity_token_file=token)
    print(f"{cfg.model} version {cfg.version} is signed by key {short(key_id)}")


ACTIONS: dict[str, Callable[[DictConfig, Path], None]] = {
    "create": _create,
    "rotate": _rotate,
    "revoke": _revoke,
    "list": _list,
    "sign": _sign,
}


@hydra_command("keys")
def main(cfg: DictConfig) -> int:
    """Do one thing with the trust folder."""
    if cfg.do not in ACTIONS:
        raise InputError(f"'{cfg.do}'", where="do", allowed=", ".join(ACTIONS))
    try:
        ACTIONS[cfg.do](cfg, trust_folder(cfg.registry.tracking_uri, _text(cfg.trust_folder)))
    except (TrustError, VerificationError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    return 0


def name_action() -> None:
    """Let the action be the first word of the command line, and identifiers be text: Hydra would read ``12e4`` or ``0012`` as numbers."""
    for place, argument in enumerate(sys.argv[1:], start=1):
        if match := re.fullmatch(r"(key|manifest)=([0-9A-Fa-f]+)", argument):
            sys.argv[place] = f"{match[1]}='{match[2]}'"
    if len(sys.argv) > 1 and "=" not in sys.argv[1] and not sys.argv[1].startswith("-"):
        sys.argv[1] = f"do={sys.argv[1]}"


if __name__ == "__main__":
    name_action()
    main()
