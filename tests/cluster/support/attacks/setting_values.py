"""Values of the settings: what an attacker would set, what PostgreSQL starts with, what an administrator configures."""

FORGED = {"clock": "2030-01-01 12:00:00+00", "window_steps": "2", "key_file": "/nowhere/evil.key", "max_attempts": "100", "lockout": "1", "lockout_max": "1",
          "hard_limit": "99", "enrollment_ttl": "2592000", "max_devices": "20", "audit_success": "on", "issuer": "Evil Corp"}
DEFAULTS = {"clock": "", "window_steps": "1", "max_attempts": "5", "lockout": "30s", "lockout_max": "1h", "hard_limit": "100", "enrollment_ttl": "1h",
            "max_devices": "10", "audit_success": "off", "issuer": ""}
CONFIGURED = {"window_steps": "0", "max_attempts": "3", "lockout": "2min", "lockout_max": "2h", "hard_limit": "20", "enrollment_ttl": "10min", "max_devices": "2",
              "audit_success": "on", "issuer": "Good Corp"}
