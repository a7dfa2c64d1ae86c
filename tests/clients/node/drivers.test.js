// node-postgres reads every answer of the extension: the calls of tests/clients/calls.sql.
//
// tests/run-clients starts the server. Its clock stands still, and its time zone is not UTC.
"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");
const { Client } = require("pg");

const isA = (type) => (value) => assert.equal(typeof value, type) ?? String(value);
const isArray = (value) => assert.ok(Array.isArray(value)) ?? JSON.stringify(value);

// Checks the type of a value that is not NULL, and writes it as PostgreSQL writes it in JSON, without the quotes of a string.
const AS_JSON = {
  boolean: isA("boolean"),
  integer: isA("number"),
  bigint: isA("string"), // a number of JavaScript does not hold all of them
  "double precision": isA("number"),
  text: isA("string"),
  void: () => "",
  bytea: (value) => assert.ok(Buffer.isBuffer(value)) ?? `\\x${value.toString("hex")}`,
  "text[]": isArray,
  "integer[]": isArray,
};

async function connect(t, options) {
  const client = new Client({ user: "postgres", database: "drivers", ...options });
  await client.connect();
  t.after(() => client.end());
  return client;
}

function check({ columns, types }, { expected, ...row }) {
  assert.deepEqual(Object.keys(row), columns);
  columns.forEach((column, n) => {
    if (row[column] === null || expected[n] === null) {
      assert.equal(row[column], expected[n], column);
    } else if (types[n] === "timestamp with time zone") {
      assert.deepEqual(row[column], new Date(expected[n]), column);
    } else {
      assert.equal(AS_JSON[types[n]](row[column]), expected[n], column);
    }
  });
}

// What is wrong with a call, or nothing.
async function problem(client, call) {
  try {
    const query = client.query(call.statement, call.args);
    if (call.error) {
      await assert.rejects(query, { code: call.error });
    } else {
      (await query).rows.forEach((row) => check(call, row));
    }
  } catch (error) {
    return `${call.call} with ${call.args}: ${error.message}`;
  }
}

test("reads every answer", async (t) => {
  const client = await connect(t);
  const { rows: calls } = await client.query("SELECT * FROM calls($1)", ["node"]);
  const problems = [];
  for (const call of calls) {
    problems.push(await problem(client, call));
  }
  assert.ok(calls.length > 0);
  assert.deepEqual(problems.filter(Boolean), []);
});

test("would not read infinity", async (t) => {
  const client = await connect(t);
  assert.ok(await problem(client, {
    call: "", args: [], error: null, columns: ["retry_at"], types: ["timestamp with time zone"],
    statement: "SELECT timestamptz 'infinity' AS retry_at, ARRAY['infinity'] AS expected",
  }));
});

// Of any server, and so of this one: it reads each value as UTF-8 first. If this fails, a version of the driver can, and
// "reads every answer" can be run with it too.
test("cannot read in binary", async (t) => {
  const client = await connect(t, { binary: true });
  const { rows: [row] } = await client.query(
    "SELECT 128 AS number, timestamptz '2030-01-01 12:00:00+00' AS at, '\\x89'::bytea AS bytes, ARRAY[NULL, $1] AS list", ["a"]);
  assert.notEqual(row.number, 128);
  assert.notEqual(row.at.getTime(), Date.UTC(2030, 0, 1, 12));
  assert.ok(!Buffer.isBuffer(row.bytes));
  assert.notDeepEqual(row.list, [null, "a"]);
});

test("sends an id that is a number as text", async (t) => {
  const client = await connect(t);
  const { rows: [row] } = await client.query("SELECT totp_verify($1, $2)", [42, "123456"]);
  assert.equal(row.totp_verify, false);
});
