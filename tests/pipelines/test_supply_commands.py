"""The commands of the supply chain, as they are called."""

from __future__ import annotations

import json
import sys

import pytest

from pipelines import audit_dependencies, keys
from registry.keys import read_trust


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """``command(module, *words)`` returns exit code, stdout and stderr; everything is written under ``tmp_path``."""
    monkeypatch.chdir(tmp_path)

    def run(module, *words):
        monkeypatch.setattr(sys, "argv", ["command", *words])
        if module is keys:
            keys.name_action()
        with pytest.raises(SystemExit) as ended:
            module.main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return run


def test_keys_are_made_listed_rotated_and_revoked(command, tmp_path):
    folder = tmp_path / "keys"
    assert command(keys, "create", "note=first")[0] == 0
    old = read_trust(folder).active
    code, out, _ = command(keys, "list")
    assert code == 0
    assert old[:16] in out
    assert "signs" in out
    assert command(keys, "create")[0] == 2
    assert command(keys, "rotate", "overlap_days=10")[0] == 0
    assert command(keys, "revoke", f"key={old[:8]}")[0] == 2, "no reason"
    assert command(keys, "revoke", f"key={old[:8]}", "reason=leaked")[0] == 0
    code, out, _ = command(keys, "list")
    assert "refused" in out
    assert f"revoked key {old[:16]}: leaked" in out
    (folder / "revoked.json").unlink()
    code, _, err = command(keys, "list")
    assert code == 1
    assert "revoked.json is missing" in err
    assert command(keys, "dance")[0] == 2


def test_a_given_key_is_used_where_it_is_and_refused_when_others_can_read_it(command, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    secret = tmp_path / "secret.pem"
    private = ec.generate_private_key(ec.SECP256R1())
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    secret.write_bytes(private.private_bytes(*encoding))
    secret.chmod(0o644)
    code, _, err = command(keys, "create", f"private_key_file={secret}")
    assert code == 1
    assert "open to others" in err
    secret.chmod(0o600)
    assert command(keys, "create", f"private_key_file={secret}")[0] == 0
    assert read_trust(tmp_path / "keys").private_path() == secret
    assert list((tmp_path / "keys" / "private").iterdir()) == []


def test_the_audit_finds_what_is_installed_and_says_what_to_do(command, tmp_path):
    affected = {
        "package": {"name": "NumPy", "ecosystem": "PyPI"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999"}]}],
    }
    entry = {"id": "PYSEC-1", "summary": "bad", "affected": [affected], "database_specific": {"severity": "MODERATE"}}
    (tmp_path / "osv.json").write_text(json.dumps([entry]))
    code, out, _ = command(audit_dependencies, "advisories=osv.json")
    assert code == 1
    assert "pip install 'numpy>=999'" in out
    written = json.loads((tmp_path / "outputs" / "audit_dependencies.json").read_text())
    assert [row["package"] for row in written["findings"]] == ["numpy"]
    assert command(audit_dependencies, "advisories=osv.json", "level=high")[0] == 0
    assert command(audit_dependencies, "advisories=osv.json", "ignore=[PYSEC-1]")[0] == 0
    (tmp_path / "constraints.txt").write_text("numpy==1000\n")
    assert command(audit_dependencies, "advisories=osv.json", "constraints=constraints.txt")[0] == 0
    assert command(audit_dependencies)[0] == 2
    assert command(audit_dependencies, "service=phone")[0] == 2


@pytest.mark.parametrize("beginning", ["12345678", "0012e456", "1e234567"])
def test_a_key_that_looks_like_a_number_is_text(command, beginning):
    assert command(keys, "create")[0] == 0
    code, _, err = command(keys, "revoke", f"key={beginning}", "reason=leaked")
    assert code == 2
    assert f"'{beginning}'" in err or beginning in err
