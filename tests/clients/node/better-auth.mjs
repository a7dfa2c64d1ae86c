// Has better-auth make its tables and encrypt secrets: tests/cluster/enrollment/test_migrating.py.
//
// Makes the tables in the database that PGHOST and the like name. Reads JSON, a list of {key, text}; key: a secret, or {keys: [[number,
// secret]], currentVersion}; without text, better-auth makes the secret. Prints JSON, a list of {text, sealed}.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// import does not look at NODE_PATH
const require = createRequire(`${process.env.NODE_PATH}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)));

const { generateRandomString, symmetricEncrypt } = await load("better-auth/crypto");
const { getMigrations } = await load("better-auth/db/migration");
const { twoFactor } = await load("better-auth/plugins");
const { Pool } = require("pg");

const database = new Pool();
await (await getMigrations({ database, plugins: [twoFactor()] })).runMigrations();
await database.end();

const made = [];
for (const { key, text = generateRandomString(32) } of JSON.parse(readFileSync(0, "utf8"))) {
  const all = typeof key === "string" ? key : { ...key, keys: new Map(key.keys) };
  made.push({ text, sealed: await symmetricEncrypt({ key: all, data: text }) });
}
process.stdout.write(JSON.stringify(made));
