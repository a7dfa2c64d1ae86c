"use strict";

const { createInterface } = require("node:readline/promises");
const { Pool } = require("pg");

const log = console;
const pool = new Pool();

// THE BLOCK

(async () => {
  for await (const line of createInterface({ input: process.stdin })) {
    const [verb, key, code] = line.split(" ");
    const user = { id: Number(key) };
    console.log(verb === "enroll" ? await enroll(user) : await secondFactor(user, code));
  }
  await pool.end();
})();
