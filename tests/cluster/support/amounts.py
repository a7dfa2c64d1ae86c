"""How much the tests under load do: all of it, or less with LOAD=light.

PG_TOTP_CRASHES=100 and the like set one of the amounts, for a longer look. PG_TOTP_SEED repeats the choices of a run,
whose tests print its seed.
"""

import os
import random

SEED = int(os.environ.get("PG_TOTP_SEED", random.randrange(2**32)))
LIGHT = os.environ.get("LOAD") == "light"


def amount(name: str, full: int, light: int) -> int:
    return int(os.environ.get(f"PG_TOTP_{name}", light if LIGHT else full))
