"""Secrets as other systems store them, made by independent implementations of their formats, from their sources.

Those of django-otp, privacyIDEA and better-auth are made by their own code instead.
"""

import hashlib
import hmac
import json
import secrets
from base64 import b64decode, b64encode, urlsafe_b64decode

from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC


def _base64(data: bytes) -> str:
    return b64encode(data).decode()


def gotrue(secret: str, factor_id: str, key_id: str, key: str) -> str:
    """Supabase Auth with encryption: AES-256-GCM, by a key that HKDF makes of the key and the id of the factor."""
    derived = HKDF(hashes.SHA256(), 32, None, factor_id.encode()).derive(urlsafe_b64decode(key + "="))
    nonce = secrets.token_bytes(12)
    data = AESGCM(derived).encrypt(nonce, secret.encode(), None)
    return json.dumps({"key_id": key_id, "alg": "aes-gcm-hkdf", "data": _base64(data), "nonce": _base64(nonce)})


def authelia(secret: str, storage_key: str) -> bytes:
    """Authelia before schema 25: AES-256-GCM, by the SHA-256 of the storage key."""
    nonce = secrets.token_bytes(12)
    return nonce + AESGCM(hashlib.sha256(storage_key.encode()).digest()).encrypt(nonce, secret.encode(), None)


def laravel(secret: str, app_key: str, gcm: bool = False, mac_key: str | None = None) -> str:
    """Laravel's Crypt::encrypt: a serialized PHP string in AES-256-CBC with HMAC, or in AES-256-GCM."""
    key, mac_key = (b64decode(text.removeprefix("base64:")) for text in (app_key, mac_key or app_key))
    text = f's:{len(secret)}:"{secret}";'.encode()
    if gcm:
        iv = secrets.token_bytes(12)
        sealed = AESGCM(key).encrypt(iv, text, None)
        payload = {"iv": _base64(iv), "value": _base64(sealed[:-16]), "mac": "", "tag": _base64(sealed[-16:])}
    else:
        iv = secrets.token_bytes(16)
        padder = padding.PKCS7(128).padder()
        encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
        value = _base64(encryptor.update(padder.update(text) + padder.finalize()) + encryptor.finalize())
        mac = hmac.new(mac_key, (_base64(iv) + value).encode(), "sha256").hexdigest()
        payload = {"iv": _base64(iv), "value": value, "mac": mac, "tag": ""}
    return _base64(json.dumps(payload).encode())


def attr_encrypted(secret: str, key: str) -> tuple[str, str, str]:
    """devise-two-factor before 5: ciphertext, IV and salt. Ruby's base64 has line ends, and the salt begins with an underscore."""
    salt, iv = secrets.token_bytes(16), secrets.token_bytes(12)
    derived = PBKDF2HMAC(hashes.SHA1(), 32, salt, 2000).derive(key.encode())
    return _base64(AESGCM(derived).encrypt(iv, secret.encode(), None)) + "\n", _base64(iv) + "\n", f"_{_base64(salt)}\n"


def active_record(secret: str, primary_key: str, salt: str, digest: hashes.HashAlgorithm) -> str:
    """devise-two-factor since 5: Rails' encrypted attribute."""
    derived = PBKDF2HMAC(digest, 32, salt.encode(), 2**16).derive(primary_key.encode())
    iv = secrets.token_bytes(12)
    sealed = AESGCM(derived).encrypt(iv, secret.encode(), None)
    return json.dumps({"p": _base64(sealed[:-16]), "h": {"iv": _base64(iv), "at": _base64(sealed[-16:])}})
