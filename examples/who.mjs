// who.mjs
import { createClient } from "redis"

const client = await createClient({ url: "redis://127.0.0.1:6379/0" }).connect()

const status = async (user) => (await client.hGet(`presence:${user}`, "status")) ?? "unknown"

async function whoIsOnline(users) {
  const statuses = await Promise.all(users.map(status))
  return users.filter((_, i) => statuses[i] === "online")
}

async function lastSeen(user) {
  const [status, changedAt] = await client.hmGet(`presence:${user}`, ["status", "changed_at"])
  if (status === "online") return "now"
  return status ? new Date(Number(changedAt)).toISOString() : "never"
}

const users = process.argv.slice(2)
console.log(await status(users[0]), await whoIsOnline(users), await Promise.all(users.map(lastSeen)))
await client.close()
