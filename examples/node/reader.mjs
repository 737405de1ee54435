// Shows the presence of the users named, read in one round trip, and from then on each change of theirs.
//
//     npm install --prefix examples/node
//     REDIS_URL=redis://127.0.0.1:6379/0 node examples/node/reader.mjs alice bob
//
// A change says whose presence to read; the hash says what it is. The reader notes its place in the stream before it
// reads everybody, so that no change falls in between. If the stream no longer has the entry at that place, others may
// be gone too: it reads everybody again.
import { once } from "node:events"
import { setTimeout } from "node:timers/promises"
import { createClient } from "redis"

const STREAM = "presence-changes"
const SILENCE_MS = 5000 // then Redis, or the network, counts as lost
const client = createClient({
  url: process.env.REDIS_URL ?? "redis://127.0.0.1:6379/0",
  disableOfflineQueue: true, // commands fail at once while Redis is away
  socket: { socketTimeout: SILENCE_MS, reconnectStrategy: () => 500 }, // the usual strategy gives up after a silence
})

async function read(users) {
  const fields = ["status", "changed_at", "platforms"]
  const hashes = await Promise.all(users.map((user) => client.hmGet(`presence:${user}`, fields)))
  return hashes.map(([status, changedAt, platforms], i) => ({
    user: users[i],
    status: status ?? "unknown",
    since: new Date(Number(changedAt)), // of an offline user: when they were last seen
    platforms: platforms ? platforms.split(",").map(Number) : [], // 1 iOS, 2 Android, 5 the web, ...
  }))
}

function show({ user, status, since, platforms }) {
  console.log(user, status, status === "unknown" ? "" : since.toISOString(), platforms.join())
}

async function newest() {
  const [entry] = await client.xRevRange(STREAM, "+", "-", { COUNT: 1 })
  return entry?.id ?? "0-0"
}

// The new place, and which of the users changed; no place if changes were missed.
async function changesAfter(place, users) {
  const entries = await client.xRange(STREAM, place, "+", { COUNT: 1001 })
  if (place !== "0-0" && entries.shift()?.id !== place) return [undefined, []]
  if (!entries.length) await client.xRead({ key: STREAM, id: place }, { BLOCK: 1000, COUNT: 1 }) // until one comes
  const changed = new Set(entries.map((entry) => entry.message.user_id))
  return [entries.at(-1)?.id ?? place, users.filter((user) => changed.has(user))]
}

let running = true
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => (running = false))
let trouble // why there is no connection
client.on("error", (error) => (trouble = error)) // it connects again by itself
client.connect()
await once(client, "ready").catch(() => {}) // or until the first try has failed, which takes 5 s at most
const everybody = process.argv.slice(2)
let place
while (running) {
  try {
    const [next, users] = place ? await changesAfter(place, everybody) : [await newest(), everybody]
    for (const user of await read(users)) show(user)
    place = next
  } catch (error) {
    const { message, code } = client.isReady ? error : (trouble ?? error)
    console.error("waiting for Redis:", message || code) // an error of several addresses has no message
    await setTimeout(1000)
  }
}
client.destroy()
