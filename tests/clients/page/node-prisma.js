"use strict";

const { createInterface } = require("node:readline/promises");
const { PrismaPg } = require("@prisma/adapter-pg");
const { PrismaClient } = require("@prisma/client");

const log = console;
const { PGHOST: host, PGPORT: port, PGDATABASE: database, PGUSER: user } = process.env;
const prisma = new PrismaClient({ adapter: new PrismaPg({ host, port: Number(port), database, user }) });

// THE BLOCK

(async () => {
  for await (const line of createInterface({ input: process.stdin })) {
    const [verb, key, code = null] = line.split(" ");
    const user = { id: Number(key) };
    console.log(verb === "enroll" ? await enroll(user) : await secondFactor(user, code));
  }
  await prisma.$disconnect();
})();
