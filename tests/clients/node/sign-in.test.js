// What a backend in JavaScript gets: node-postgres with bind parameters, named prepared statements, and its pool.
//
// tests/run-clients starts the server. Its clock stands still, and role app has the capability enroll.
"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");
const { TOTP } = require("otpauth");
const { Client, Pool } = require("pg");

const NOW = Date.UTC(2030, 0, 1, 12); // the server's time
const CHECK = "SELECT accepted, reason, matched_device, attempts_left, retry_at FROM totp_check($1, $2)";

// node-postgres takes host, port and database from PGHOST, PGPORT and PGDATABASE.
async function connect(t, user = "app") {
  const client = new Client({ user });
  await client.connect();
  t.after(() => client.end());
  return client;
}

function pool(t) {
  const pool = new Pool({ user: "app", max: 4 });
  t.after(() => pool.end());
  return pool;
}

// Enrolls a user and confirms with the code before the current one; the user's authenticator.
async function user(db, userId) {
  const { rows: [{ secret }] } = await db.query("SELECT secret FROM totp_enroll($1)", [userId]);
  const app = new TOTP({ secret });
  const { rows: [row] } = await db.query("SELECT totp_confirm($1, $2)", [userId, code(app, NOW - 30_000)]);
  assert.equal(row.totp_confirm, true);
  return app;
}

const code = (app, timestamp = NOW) => app.generate({ timestamp });

// A code that is none of those the server accepts.
function wrongCode(app) {
  const accepted = [NOW - 30_000, NOW, NOW + 30_000].map((time) => code(app, time));
  return ["000000", "000001", "000002", "000003"].find((code) => !accepted.includes(code));
}

async function verify(db, userId, code) {
  const { rows } = await db.query("SELECT totp_verify($1, $2)", [userId, code]);
  assert.equal(rows.length, 1);
  return rows[0].totp_verify;
}

test("true once and false for all else", async (t) => {
  const client = await connect(t);
  const app = await user(client, "node/bind");
  assert.equal(await verify(client, "node/bind", wrongCode(app)), false);
  assert.equal(await verify(client, "node/bind", "no code"), false);
  assert.equal(await verify(client, "node/nobody", code(app)), false);
  assert.equal(await verify(client, "node/bind", code(app)), true);
  assert.equal(await verify(client, "node/bind", code(app)), false);
});

test("null is false", async (t) => {
  const client = await connect(t);
  const app = await user(client, "node/null");
  assert.equal(await verify(client, "node/null", null), false);
  assert.equal(await verify(client, "node/null", undefined), false);
  assert.equal(await verify(client, null, code(app)), false);
});

test("check tells why", async (t) => {
  const client = await connect(t);
  const app = await user(client, "node/check");
  for (const [code_, expected] of [
    [wrongCode(app), { accepted: false, reason: "wrong", matched_device: null, attempts_left: 4, retry_at: null }],
    [code(app), { accepted: true, reason: "accepted", matched_device: "default", attempts_left: 5, retry_at: null }],
    [code(app), { accepted: false, reason: "replayed", matched_device: "default", attempts_left: 5, retry_at: null }],
    ["no code", { accepted: false, reason: "malformed", matched_device: null, attempts_left: 5, retry_at: null }],
  ]) {
    const { rows } = await client.query(CHECK, ["node/check", code_]);
    assert.deepEqual(rows.map((row) => ({ ...row })), [expected]);
  }
});

test("a locked user is refused with the time of the next try", async (t) => {
  const client = await connect(t);
  const app = await user(client, "node/locked");
  for (let guess = 0; guess < 5; guess++) {
    assert.equal(await verify(client, "node/locked", wrongCode(app)), false);
  }
  assert.equal(await verify(client, "node/locked", code(app)), false);
  const { rows: [row] } = await client.query(CHECK, ["node/locked", code(app)]);
  assert.deepEqual({ ...row }, {
    accepted: false, reason: "locked", matched_device: null, attempts_left: 0, retry_at: new Date(NOW + 30_000),
  });
});

test("errors have their SQLSTATE and leave the connection usable", async (t) => {
  const client = await connect(t);
  const app = await user(client, "node/error");

  await assert.rejects(client.query("SELECT totp_enroll($1, algorithm => $2)", ["node/error", "MD5"]),
    (error) => error.code === "22023" && error.detail.includes("SHA256"));

  await client.query("BEGIN READ ONLY");
  await assert.rejects(verify(client, "node/error", code(app)),
    (error) => error.code === "25006" && error.hint.length > 0);
  await client.query("ROLLBACK");

  // A secret that does not open is an error: it is neither a good code nor a wrong one.
  await assert.rejects(verify(client, "broken", code(app)), { code: "XX001" });

  const stranger = await connect(t, "stranger");
  await assert.rejects(verify(stranger, "node/error", code(app)), { code: "42501" });

  assert.equal(await verify(client, "node/error", code(app)), true);
});

test("one prepared statement serves every user", async (t) => {
  const client = await connect(t);
  const prepared = async (...values) => {
    const { rows: [row] } = await client.query({ name: "sign in", text: "SELECT totp_verify($1, $2) AS ok", values });
    return row.ok;
  };
  // From its sixth use on PostgreSQL may run a prepared statement by a plan that knows no parameter.
  for (let number = 0; number < 10; number++) {
    const userId = `node/prepared ${number}`;
    const app = await user(client, userId);
    assert.equal(await prepared(userId, wrongCode(app)), false);
    assert.equal(await prepared(userId, code(app)), true);
    assert.equal(await prepared(userId, code(app)), false);
  }
  const { rows } = await client.query("SELECT name FROM pg_prepared_statements");
  assert.deepEqual(rows.map((row) => row.name), ["sign in"]);
});

test("of a pool one connection gets in", async (t) => {
  const connections = pool(t);
  const app = await user(connections, "node/pool");
  const signIn = { name: "sign in", text: "SELECT totp_verify($1, $2) AS ok", values: ["node/pool", code(app)] };
  const answers = await Promise.all(Array.from({ length: 12 }, () => connections.query(signIn)));
  assert.equal(answers.filter(({ rows: [row] }) => row.ok === true).length, 1);
  assert.equal(answers.filter(({ rows: [row] }) => row.ok === false).length, 11);
});

test("a pool counts wrong guesses over all its connections", async (t) => {
  const connections = pool(t);
  const app = await user(connections, "node/guesses");
  const guesses = await Promise.all(Array.from({ length: 5 }, () => verify(connections, "node/guesses", wrongCode(app))));
  assert.deepEqual(guesses, [false, false, false, false, false]);
  assert.equal(await verify(connections, "node/guesses", code(app)), false);
  const { rows: [row] } = await connections.query(CHECK, ["node/guesses", code(app)]);
  assert.equal(row.reason, "locked");
});
