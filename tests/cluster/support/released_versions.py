"""The released versions, and the script that installs each."""

from server import CHECKOUT

RELEASES = {path.stem.removeprefix("pg_totp--"): path for path in sorted((CHECKOUT / "sql" / "install").glob("pg_totp--*.sql"))}
