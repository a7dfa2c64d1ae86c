// Reads otpauth URIs, one a line, and prints what the package otpauth finds in each as a JSON array:
// issuer, account, secret, algorithm, digits and period.
"use strict";

const { readFileSync } = require("node:fs");
const { URI } = require("otpauth");

for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const totp = URI.parse(line);
  console.log(JSON.stringify([totp.issuer, totp.label, totp.secret.base32, totp.algorithm, totp.digits, totp.period]));
}
