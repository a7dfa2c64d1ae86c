"""Has privacyIDEA make its tables' SQL and encrypt secrets: tests/cluster/enrollment/test_migrating.py.

usage: tokens.py ENCKEY <SECRETS    ENCKEY: a file of 96 bytes; SECRETS: JSON, a list of secrets in hex

Prints JSON: the SQL of the tables, and key_enc and key_iv of each secret. Every fourth is in the padding of old versions, which
privacyIDEA no longer writes but reads.
"""

import json
import os
import sys

from privacyidea.lib.crypto import aes_cbc_encrypt
from privacyidea.lib.security.default import DefaultSecurityModule
from privacyidea.models.realm import Realm
from privacyidea.models.token import Token, TokenInfo, TokenOwner
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

module = DefaultSecurityModule({"file": sys.argv[1]})


def encrypt(number: int, secret: str) -> list[str]:
    iv = os.urandom(16)
    sealed = module.encrypt(secret.encode(), iv)
    if number % 4 == 3:
        padded = secret.encode().hex().encode() + b"\x01\x02"
        sealed = aes_cbc_encrypt(module._get_secret(module.TOKEN_KEY), iv, padded + bytes(-len(padded) % 16))
    assert module.decrypt(sealed, iv) == secret.encode()
    return [sealed.hex(), iv.hex()]


json.dump({
    "tables": [str(CreateTable(model.__table__).compile(dialect=postgresql.dialect())) for model in (Realm, Token, TokenInfo, TokenOwner)],
    "tokens": [encrypt(number, secret) for number, secret in enumerate(json.load(sys.stdin))],
}, sys.stdout)
