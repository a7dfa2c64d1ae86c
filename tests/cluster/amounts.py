"""How much the tests of load do: all of it, or a part of it with LOAD=light.

PG_TOTP_CRASHES=100 and the like set one of the amounts, for a longer look.
"""

import os

LIGHT = os.environ.get("LOAD") == "light"


def amount(name: str, full: int, light: int) -> int:
    return int(os.environ.get(f"PG_TOTP_{name}", light if LIGHT else full))
