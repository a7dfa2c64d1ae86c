// Signs users in on the shard that has them, through a pgbouncer that has one database for each partition. Needs pg.
"use strict";

const { createHash } = require("node:crypto");
const { Pool } = require("pg");

const PARTITIONS = 16; // as totp_shard.partition_count()

// Returns the partition of a user, as totp_shard.partition() does: of the id as it is, nothing is normalized.
function partition(userId) {
  if (typeof userId !== "string" || /\p{Surrogate}/u.test(userId)) throw new TypeError("a user id is Unicode text");
  return createHash("sha256").update(userId, "utf8").digest()[0] % PARTITIONS;
}

class Shards {
  // Takes what leads to pgbouncer, as a role of the shards: { host: "127.0.0.1", port: 6432, user: "totp_router_verify" }.
  constructor(config) {
    this.pools = Array.from({ length: PARTITIONS }, (_, number) => new Pool({ ...config, database: `totp_${number}` }));
    // An idle connection that breaks is no error of a call.
    for (const pool of this.pools) pool.on("error", () => {});
  }

  // Returns whether the code is good. An exception is no answer: do not sign the user in.
  async verify(userId, code, { device = null, actor = "" } = {}) {
    const [row] = await this.call("SELECT totp_shard.totp_verify($1, $2, $3, $4) AS good", userId, code, device, actor);
    return row.good;
  }

  // Returns the columns of totp_check().
  async check(userId, code, { device = null, actor = "" } = {}) {
    const [row] = await this.call("SELECT * FROM totp_shard.totp_check($1, $2, $3, $4)", userId, code, device, actor);
    return row;
  }

  // Runs a statement on the shard of its first argument, and returns the rows.
  async call(statement, userId, ...args) {
    const { rows } = await this.pools[partition(userId)].query(statement, [userId, ...args]);
    return rows;
  }

  async close() {
    await Promise.all(this.pools.map((pool) => pool.end()));
  }
}

module.exports = { PARTITIONS, Shards, partition };
