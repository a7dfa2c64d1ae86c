"""What totp_health() says."""


def health(conn, full: bool = True) -> dict[str, tuple[str, str]]:
    """Status and detail of each check."""
    rows = conn.execute("SELECT check_name, status, detail FROM totp_health(%s)", [full]).fetchall()
    assert all(status in ("ok", "warn", "fail") and detail for _, status, detail in rows)
    return {name: (status, detail) for name, status, detail in rows}
