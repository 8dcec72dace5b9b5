"""Whom we believe: trusted public keys with their validity, the key that signs, and what was revoked.

A trust folder (by default ``keys/`` beside the sqlite database)::

    trust.json          the keys trusted, by fingerprint; which one signs; the lowest serial number of a revocation list to accept
    public/ID.pem       P-256 public keys; ID is the SHA-256 of the file, so a changed file is another key
    private/ID.pem      the signing key (mode 0600); a machine that only loads models does not have it
    revoked.json        revoked keys, versions and manifest digests, signed by a trusted key

Whoever can write this folder decides what is loaded, so files that others may write are refused, and so is a list that is missing,
unreadable, older than one seen, or signed by nobody trusted: it is never taken for empty.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from registry.locks import exclusive
from registry.mlflow_client import DEFAULT_URI, sqlite_path
from telemetry.errors import InputError

TRUST_FILE, REVOKED_FILE, LOCK_FILE = "trust.json", "revoked.json", ".lock"
FORMAT = 1
KEYS_FOLDER = "keys"
REVOCATIONS_TYPE = "application/vnd.joulewise.revocations+json"
_REMEDY_CREATE = "run `python -m pipelines.keys create`, then `python -m pipelines.keys sign` for the versions that should serve"
_LOG = logging.getLogger(__name__)


class TrustError(RuntimeError):
    """Something is not to be believed: an untrusted, expired or revoked key, a bad signature, an unusable trust folder."""


@dataclass(frozen=True)
class TrustedKey:
    """A public key. ``key_id`` is the SHA-256 of its PEM; times are ISO 8601 with offset, ``valid_until`` None = until it is rotated."""

    key_id: str
    valid_from: str
    valid_until: str | None = None
    note: str = ""

    def valid_at(self, moment: dt.datetime) -> bool:
        """Whether ``moment`` lies in its validity."""
        return _moment(self.valid_from) <= moment and (self.valid_until is None or moment < _moment(self.valid_until))


@dataclass(frozen=True)
class Revocations:
    """What must not load, with the reason: keys by fingerprint, versions as ``name:version``, packages by their manifest's SHA-256."""

    serial: int = 0
    keys: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    manifests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trust:
    """A trust folder that was read and believed.

    Attributes:
        active: fingerprint of the key that signs.
        private_key_file: the signing key where it is not ``private/ID.pem``.
        sigstore: ``{"identity", "oidc_issuer"}`` (perhaps ``"trust_config_file"``) when packages must carry a sigstore signature too.
    """

    folder: Path
    keys: Mapping[str, TrustedKey]
    active: str
    revoked: Revocations
    min_serial: int = 0
    private_key_file: str | None = None
    sigstore: Mapping[str, str] | None = None

    def public_path(self, key_id: str) -> Path:
        """File of a public key."""
        return self.folder / "public" / f"{key_id}.pem"

    def private_path(self) -> Path:
        """File of the signing key."""
        return Path(self.private_key_file) if self.private_key_file else self.folder / "private" / f"{self.active}.pem"

    def usable(self, key_id: str, now: dt.datetime | None = None) -> Path:
        """The public key file of a key that is trusted, valid now and not revoked. Raises TrustError."""
        key = self.keys.get(key_id)
        if key is None:
            raise TrustError(f"signed by key {short(key_id)}, which is not trusted; trusted: {', '.join(map(short, self.keys))}")
        if key_id in self.revoked.keys:
            raise TrustError(f"signed by key {short(key_id)}, which was revoked: {self.revoked.keys[key_id]}")
        if not key.valid_at(now or dt.datetime.now(dt.UTC)):
            raise TrustError(f"signed by key {short(key_id)}, which is valid from {key.valid_from} until {key.valid_until}")
        path = self.public_path(key_id)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise TrustError(f"public key {short(key_id)} cannot be read ({error})") from error
        if hashlib.sha256(content).hexdigest() != key_id:
            raise TrustError(f"{path} was changed: it is not key {short(key_id)}")
        return path

    def signer(self) -> ec.EllipticCurvePrivateKey:
        """The signing key, after checking that its public half is usable. Raises TrustError."""
        self.usable(self.active)
        path = self.private_path()
        _refuse_mode(path, stat.S_IRWXG | stat.S_IRWXO, "chmod 600")
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise TrustError(f"the signing key {path} cannot be read ({type(error).__name__})") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or fingerprint(public_pem(key)) != self.active:
            raise TrustError(f"{path} is not the signing key {short(self.active)}")
        return key


def short(key_id: str) -> str:
    """The first 16 of a fingerprint's digits, to show."""
    return key_id[:16]


def fingerprint(pem: bytes) -> str:
    """Id of a public key: SHA-256 of its PEM, which is also the hint in a model-signing bundle."""
    return hashlib.sha256(pem).hexdigest()


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PEM of the public half."""
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def trust_folder(tracking_uri: str = DEFAULT_URI, folder: Path | str | None = None) -> Path:
    """Where the keys of a registry are: ``folder``, else ``keys/`` beside the sqlite database, else ``keys/`` in the current folder."""
    if folder is not None:
        return Path(folder).absolute()
    database = sqlite_path(tracking_uri)
    return (database.parent if database is not None else Path.cwd()) / KEYS_FOLDER


def signing_trust(tracking_uri: str, folder: Path | str | None = None) -> Trust:
    """The trust folder to sign with. That of an embedded database is made on first use, with a notice.

    Raises:
        TrustError: an unusable folder.
        InputError: none, and the registry is a server.
    """
    place = trust_folder(tracking_uri, folder)
    if not (place / TRUST_FILE).exists():
        if folder is not None or sqlite_path(tracking_uri) is None:
            raise InputError(f"no trust folder at {place}", where="signing", remedy="run `python -m pipelines.keys create`")
        with exclusive(_lock(place)):
            if not (place / TRUST_FILE).exists():
                trust = _create(place)
                _LOG.warning(
                    "joulewise: made signing key %s in %s; keep the folder, and give loaders a copy without private/", *_said(trust)
                )
    return read_trust(place)


def _said(trust: Trust) -> tuple[str, Path]:
    return short(trust.active), trust.folder


def create_trust(folder: Path, *, note: str = "", private_key_file: str | None = None, sigstore: Mapping[str, str] | None = None) -> Trust:
    """Make a trust folder with a new signing key, or with the P-256 key in ``private_key_file``. Raises InputError when there is one."""
    with exclusive(_lock(folder)):
        if (folder / TRUST_FILE).exists():
            raise InputError("there is a trust folder already", where=str(folder), remedy="use rotate for a new key")
        return _create(folder, note, private_key_file, sigstore)


def _create(folder: Path, note: str = "", private_key_file: str | None = None, sigstore: Mapping[str, str] | None = None) -> Trust:
    for place in (folder, folder / "public", folder / "private"):
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(0o700)
    key_id = _new_key(folder, private_key_file)
    keys = {key_id: TrustedKey(key_id, _now().isoformat(timespec="seconds"), None, note)}
    trust = Trust(folder, keys, key_id, Revocations(), 1, private_key_file, sigstore)
    return _store(trust, Revocations(serial=1))


def rotate(folder: Path, *, overlap_days: float = 90.0, note: str = "", private_key_file: str | None = None) -> Trust:
    """A new key signs from now on; the old one still verifies for ``overlap_days`` and its private half in the folder is deleted.

    Raises:
        TrustError: an unusable folder.
    """
    with exclusive(_lock(folder)):
        trust = read_trust(folder)
        now = _now()
        key_id, old = _new_key(folder, private_key_file), trust.keys[trust.active]
        end = now + dt.timedelta(days=overlap_days)
        if old.valid_until is not None:
            end = min(end, _moment(old.valid_until))
        keys = {**trust.keys, old.key_id: replace(old, valid_until=end.isoformat(timespec="seconds"))}
        keys[key_id] = TrustedKey(key_id, now.isoformat(timespec="seconds"), None, note)
        rotated = replace(trust, keys=keys, active=key_id, private_key_file=private_key_file)
        # The old key trusts the new one before the new one signs the list: a process killed in between leaves a folder that can be read.
        _write_json(folder / TRUST_FILE, _trust_json(replace(trust, keys=keys)))
        fresh = _store(rotated, replace(trust.revoked, serial=trust.revoked.serial + 1))
        (folder / "private" / f"{old.key_id}.pem").unlink(missing_ok=True)
        return fresh


def revoke(
    folder: Path, *, reason: str, keys: tuple[str, ...] = (), versions: tuple[str, ...] = (), manifests: tuple[str, ...] = ()
) -> Revocations:
    """Add to the revocation list; it counts from the next load on.

    Args:
        keys: fingerprints, or beginnings that name one trusted key.
        versions: ``name:version``.
        manifests: SHA-256 of manifests, which also reaches copies kept outside the registry.

    Raises:
        InputError: no reason, an unknown key, or the signing key (rotate first).
        TrustError: an unusable folder.
    """
    if not reason.strip():
        raise InputError("no reason given", where="revoke", remedy="say why, it is shown where the model is refused")
    with exclusive(_lock(folder)):
        trust = read_trust(folder)
        ids = [find_key(trust, key) for key in keys]
        if trust.active in ids:
            raise InputError(f"key {short(trust.active)} is the one that signs", where="revoke", remedy="rotate first, then revoke it")
        old = trust.revoked
        revoked = Revocations(
            old.serial + 1,
            {**old.keys, **dict.fromkeys(ids, reason)},
            {**old.versions, **dict.fromkeys(versions, reason)},
            {**old.manifests, **dict.fromkeys(manifests, reason)},
        )
        return _store(trust, revoked).revoked


def find_key(trust: Trust, beginning: str) -> str:
    """The one trusted key whose fingerprint begins so. Raises InputError."""
    found = [key for key in trust.keys if key.startswith(beginning)] if beginning else []
    if len(found) != 1:
        raise InputError(f"{len(found)} trusted keys begin with '{beginning}'", where="key", allowed=", ".join(map(short, trust.keys)))
    return found[0]


def read_trust(folder: Path) -> Trust:
    """Read and check a trust folder. Raises TrustError."""
    for path in (folder, folder / TRUST_FILE, folder / REVOKED_FILE):
        _refuse_mode(path, stat.S_IWGRP | stat.S_IWOTH, "chmod go-w")
    content = _read_json(folder / TRUST_FILE)
    try:
        if content["format"] != FORMAT:
            raise TrustError(f"{folder / TRUST_FILE}: format {content['format']}, allowed: {FORMAT}")
        keys = {key_id: TrustedKey(key_id, **facts) for key_id, facts in content["keys"].items()}
        for key in keys.values():
            key.valid_at(_now())
        trust = Trust(
            folder, keys, content["active"], Revocations(), int(content["min_serial"]), content["private_key_file"], content["sigstore"]
        )
        if trust.active not in keys:
            raise TrustError(f"{folder / TRUST_FILE}: the signing key is not among the trusted ones")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrustError(f"{folder / TRUST_FILE} cannot be understood ({type(error).__name__}: {error})") from error
    return replace(trust, revoked=_read_revocations(trust))


def _read_revocations(trust: Trust) -> Revocations:
    path = trust.folder / REVOKED_FILE
    content = _read_json(path)
    try:
        signature = content.pop("signature")
        revoked = Revocations(**content)
        for table in (revoked.keys, revoked.versions, revoked.manifests):
            if not all(isinstance(item, str) for item in [*table.keys(), *table.values()]):
                raise TypeError("names and reasons are text")
        verify_json(replace(trust, revoked=revoked), REVOCATIONS_TYPE, content, signature)
    except (KeyError, TypeError, ValueError, AttributeError, TrustError) as error:
        raise TrustError(f"the revocation list {path} is not to be believed ({error}); restore it from a backup") from error
    if revoked.serial < trust.min_serial:
        raise TrustError(f"the revocation list {path} is an old one: serial {revoked.serial}, at least {trust.min_serial} was seen")
    return revoked


def sign_json(trust: Trust, kind: str, content: Mapping[str, Any]) -> dict[str, str]:
    """``{"key", "sig"}``: ECDSA over the DSSE pre-authentication encoding of the canonical JSON of ``content``. Raises TrustError."""
    signature = trust.signer().sign(_encoded(kind, content), ec.ECDSA(hashes.SHA256()))
    return {"key": trust.active, "sig": base64.b64encode(signature).decode()}


def verify_json(trust: Trust, kind: str, content: Mapping[str, Any], signature: Mapping[str, str]) -> str:
    """Check what :func:`sign_json` made; returns the key's fingerprint. Raises TrustError."""
    try:
        key_id, sig = str(signature["key"]), base64.b64decode(str(signature["sig"]), validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise TrustError("its signature cannot be understood") from error
    key = serialization.load_pem_public_key(trust.usable(key_id).read_bytes())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TrustError(f"key {short(key_id)} is no elliptic-curve key")
    try:
        key.verify(sig, _encoded(kind, content), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise TrustError(f"its signature by key {short(key_id)} does not fit") from error
    return key_id


def _encoded(kind: str, content: Mapping[str, Any]) -> bytes:
    """DSSE v1 pre-authentication encoding (secure-systems-lab/dsse, protocol.md): one kind's signature is none of another."""
    body = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(body), body)


def _new_key(folder: Path, private_key_file: str | None) -> str:
    if private_key_file is None:
        key = ec.generate_private_key(ec.SECP256R1())
        key_id = fingerprint(public_pem(key))
        secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        _write(folder / "private" / f"{key_id}.pem", secret)
    else:
        _refuse_mode(Path(private_key_file), stat.S_IRWXG | stat.S_IRWXO, "chmod 600")
        try:
            given = serialization.load_pem_private_key(Path(private_key_file).read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"cannot be read ({type(error).__name__})", where=private_key_file, allowed="an unencrypted PEM file"
            ) from error
        if not isinstance(given, ec.EllipticCurvePrivateKey) or given.curve.name != "secp256r1":
            raise InputError("not a P-256 key", where=private_key_file, remedy="openssl ecparam -name prime256v1 -genkey -noout")
        key, key_id = given, fingerprint(public_pem(given))
    _write(folder / "public" / f"{key_id}.pem", public_pem(key))
    return key_id


def _store(trust: Trust, revoked: Revocations) -> Trust:
    """Write list, then keys: the list's serial is never behind what ``trust.json`` asks for."""
    content = {
        "serial": revoked.serial,
        "keys": dict(revoked.keys),
        "versions": dict(revoked.versions),
        "manifests": dict(revoked.manifests),
    }
    fresh = replace(trust, revoked=revoked, min_serial=revoked.serial)
    _write_json(trust.folder / REVOKED_FILE, {**content, "signature": sign_json(fresh, REVOCATIONS_TYPE, content)})
    _write_json(trust.folder / TRUST_FILE, _trust_json(fresh))
    return fresh


def _trust_json(trust: Trust) -> dict[str, Any]:
    keys = {key.key_id: {"valid_from": key.valid_from, "valid_until": key.valid_until, "note": key.note} for key in trust.keys.values()}
    return {
        "format": FORMAT,
        "active": trust.active,
        "keys": keys,
        "min_serial": trust.min_serial,
        "private_key_file": trust.private_key_file,
        "sigstore": None if trust.sigstore is None else dict(trust.sigstore),
    }


def _lock(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / LOCK_FILE


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TrustError(f"{path} is missing; {_REMEDY_CREATE}") from error
    except (OSError, ValueError) as error:
        raise TrustError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise TrustError(f"{path} is no JSON object")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _refuse_mode(path: Path, bits: int, remedy: str) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise TrustError(f"{path} is missing; {_REMEDY_CREATE}") from error
    except OSError as error:
        raise TrustError(f"{path} cannot be read ({error})") from error
    if mode & bits:
        raise TrustError(f"{path} is open to others (mode {stat.S_IMODE(mode):o}); {remedy} {path}")


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _moment(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no offset from UTC")
    return moment
