"""Texts of a master key file: what the server refuses, and each way in which it accepts a key."""

K1, K2 = "0123456789abcdef" * 4, "fedcba9876543210" * 4
SPOILED = {
    "empty": "", "white space": " \n\t\n", "comments only": "# nothing here\n#\n", "truncated": K1[:63], "too long": K1 + "0", "half": K1[:32], "twice in a line": K1 + K1,
    "two in a line": K1 + " " + K2, "base64": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "not hex": "g" + K1[1:], "with 0x": "0x" + K1, "spaces inside": K1[:32] + " " + K1[32:],
    "all zero": "0" * 64, "all one": "1" * 64, "all f": "f" * 64, "all F": "F" * 64, "mixed f": "fF" * 32, "all a": "a" * 64, "duplicate": f"{K1}\n{K1}\n",
    "duplicate in upper case": f"{K1}\n{K1.upper()}\n", "duplicate further down": f"{K1}\n{K2}\n{K1}\n", "second line bad": f"{K1}\nnot a key\n",
    "second line short": f"{K1}\n{K2[:10]}\n", "full-width digits": "０" * 64, "BOM": "\ufeff" + K1, "NUL": K1[:32] + "\0" + K1[33:], "NUL at the end": K1 + "\n\0",
    "shell": f"TOTP_ENCRYPTION_KEY={K1}", "quoted": f'"{K1}"', "PEM": "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----\n",
    "comma": f"{K1},{K2}", "too much": "# " + "x" * 65536 + "\n" + K1,
}

WRITTEN = {
    "no newline": "{key}", "CRLF": "{key}\r\n", "blank lines": "\n\n{key}\n\n", "indented": "  \t{key}  \n", "upper case": "{KEY}\n", "comment above": "# made in 2030\n{key}\n",
    "comment beside": "{key} # made in 2030\n", "older keys below": "{key}\n" + K1 + "\n" + K2 + "\n", "older key first": K1 + "\n{key}\n",
    "64 kB": "#" + "x" * (65536 - 66) + "\n{key}",
}
