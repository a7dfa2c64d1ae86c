// Reads otpauth URIs, one a line, and prints what the package otpauth, or otplib if that is the argument, finds in each as
// a JSON array: issuer, account, secret, algorithm, digits and period; null for a URI that it refuses.
"use strict";

const { readFileSync } = require("node:fs");

const readers = {
  otpauth() {
    const { URI } = require("otpauth");
    return (uri) => {
      const totp = URI.parse(uri);
      return [totp.issuer, totp.label, totp.secret.base32, totp.algorithm, totp.digits, totp.period];
    };
  },
  otplib() {
    const { parse } = require("@otplib/uri");
    return (uri) => {
      const { label, params } = parse(uri);
      const { issuer, secret, algorithm = "sha1", digits = 6, period = 30 } = params;
      // It leaves the label to its caller.
      const colon = label.indexOf(":");
      const account = label.slice(colon + 1).trimStart();
      return [issuer ?? label.slice(0, Math.max(colon, 0)), account, secret, algorithm.toUpperCase(), digits, period];
    };
  },
};

const read = readers[process.argv[2] ?? "otpauth"]();
for (const line of readFileSync(0, "utf8").split("\n").filter(Boolean)) {
  let found = null;
  try {
    found = read(line);
  } catch {
    // refused
  }
  console.log(JSON.stringify(found));
}
