// Reads issuer, account, secret, algorithm, digits and period as JSON arrays, one a line, and prints the URI that the
// package otpauth makes of each.
"use strict";

const { readFileSync } = require("node:fs");
const { TOTP } = require("otpauth");

for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const [issuer, label, secret, algorithm, digits, period] = JSON.parse(line);
  console.log(new TOTP({ issuer, label, secret, algorithm, digits, period }).toString());
}
