// Reads issuer, account, secret, algorithm, digits and period, with tabs between, and prints the URI that the package
// otpauth makes of each line.
"use strict";

const { readFileSync } = require("node:fs");
const { TOTP } = require("otpauth");

for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  const [issuer, label, secret, algorithm, digits, period] = line.split("\t");
  console.log(new TOTP({ issuer, label, secret, algorithm, digits: Number(digits), period: Number(period) }).toString());
}
