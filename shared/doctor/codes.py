"""Every finding that the doctor may make. docs/doctor.md lists them; a code keeps its meaning for ever."""

from dataclasses import dataclass
from typing import Literal, get_args

#: error: presence is or will be wrong, or callbacks are lost. warning: it takes one more mishap. note: good to know.
Severity = Literal["error", "warning", "note"]
#: The worst first.
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True, slots=True)
class Code:
    """why: why it matters. mend: the command or setting that mends it."""

    severity: Severity
    why: str
    mend: str


#: What each tens digit is about, for the page.
GROUPS = {
    "P00": "Settings",
    "P01": "Redis",
    "P02": "Redis",
    "P03": "The journal",
    "P04": "The receiver",
    "P05": "Queue and workers",
    "P06": "Leases and OpenIM's gateways",
    "P07": "OpenIM's configuration",
    "P08": "OpenIM's configuration",
    "P09": "The doctor itself",
    "P10": "Comparing with OpenIM",
}

CODES = {
    # Settings
    "P001": Code("error", "No program starts with this setting.", "Correct the variable that is named."),
    "P002": Code(
        "error",
        "Two programs on one machine cannot listen on one port: the second does not start.",
        "Give each of PRESENCE_PORT, PRESENCE_ADMIN_PORT and PRESENCE_WORKER_ADMIN_PORT its own port.",
    ),
    "P003": Code(
        "warning",
        "Anyone who reaches the port can show any user as online or offline.",
        "Set PRESENCE_ALLOWED_NETWORKS, PRESENCE_BASIC_AUTH or PRESENCE_CALLBACK_PATH; docs/access.md.",
    ),
    "P004": Code(
        "warning",
        "A list that includes all addresses keeps nobody out; in a list of trusted proxies it lets anyone "
        "claim any address.",
        "Name the networks of OpenIM, and the addresses of your proxies.",
    ),
    "P005": Code(
        "note",
        "Without TLS the password crosses the network as plain text.",
        "Set PRESENCE_TLS_CERT and PRESENCE_TLS_KEY, or put a proxy with TLS in front.",
    ),
    "P006": Code(
        "error",
        "Callbacks that are not about presence go round in a circle until they time out, and OpenIM waits for them.",
        "Set PRESENCE_FORWARD_URL to the business server, or leave it empty.",
    ),
    "P007": Code(
        "warning",
        "The receiver takes another port at each start, and OpenIM cannot know which.",
        "Set PRESENCE_PORT to a number; OpenIM's shipped configuration has 10006.",
    ),
    "P008": Code(
        "warning",
        "An event that comes late, from a journal that was away for long, counts as the "
        "newest of a user who is forgotten by then: a user may be wrongly shown online.",
        "Set PRESENCE_RETENTION_SECONDS to more than the longest outage, such as 2592000, or to 0.",
    ),
    # Redis
    "P010": Code(
        "error",
        "Events wait in the journal until it answers, and presence stands still.",
        "Start the server; if it runs, it is frozen, too busy, or out of reach. PRESENCE_REDIS_URL and "
        "PRESENCE_QUEUE_URL say where it is.",
    ),
    "P011": Code(
        "error",
        "Events wait in the journal until it lets us in, and presence stands still.",
        "Correct user and password in the URL: redis://user:password@host:port/0, with %40 for @ and the like.",
    ),
    "P012": Code(
        "error",
        "When its memory is full, it discards the queue or users.",
        "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in its configuration file.",
    ),
    "P013": Code(
        "warning",
        "It has no maxmemory now. If somebody sets one, it discards the queue or users when it is full.",
        "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in its configuration file.",
    ),
    "P014": Code(
        "warning",
        "A restart of the server loses all its data; the receivers have the last 5 s.",
        "redis-cli CONFIG SET appendonly yes, and the same in its configuration file.",
    ),
    "P015": Code(
        "error",
        "The queue needs 6.2 (LMOVE), presence 7.0 (functions): nothing can be applied.",
        "Upgrade the server; docs/redis-servers.md.",
    ),
    "P016": Code(
        "warning",
        "Redis 7.0.0 breaks the protocol when it cannot save (MISCONF): it sends an extra "
        "empty line, so that the client misreads the next answer and has to reconnect.",
        "Upgrade it to 7.0.1 or later.",
    ),
    "P017": Code(
        "error",
        "Events wait in the journal or in the queue until it takes writes and keeps them.",
        "Point the URL at the primary, or free its disk: its own log says what failed.",
    ),
    "P018": Code(
        "error",
        "The programs do not work with such a server under such a URL.",
        "Write the URL as docs/redis-servers.md says.",
    ),
    "P019": Code(
        "error",
        "When it is full it refuses writes, and events wait in the journal.",
        "redis-cli CONFIG SET maxmemory with more, or give it more memory.",
    ),
    "P020": Code(
        "error",
        "What the programs do with this command fails: events wait, or pages and `presence status` have gaps.",
        "Give its user the rights that docs/redis-servers.md lists, with ACL SETUSER.",
    ),
    "P021": Code(
        "note",
        "Anyone who reaches the server can read and change everything in it.",
        "Let only the programs reach it, or give it a password (requirepass), which then stands in the URL.",
    ),
    "P022": Code(
        "error",
        "This key does not have the type that the programs need, and what depends on it does not work.",
        "Look at it with redis-cli TYPE, and move it away with redis-cli RENAME.",
    ),
    "P023": Code(
        "warning",
        "Programs use the clock of the queue's server; times and leases compared with another clock are wrong.",
        "Keep NTP running on the server's machine and on this one.",
    ),
    "P024": Code(
        "warning",
        "If the primary is lost, nothing takes its place; if its disk is lost, so is everything in it.",
        "Start a replica; docs/redis-servers.md.",
    ),
    "P025": Code(
        "warning",
        "Receivers keep what they have pushed for 5 s: if a replica that is further behind is "
        "promoted, events are lost.",
        "Find out what delays it; min-replicas-to-write 1 and min-replicas-max-lag 3 enforce a limit.",
    ),
    "P026": Code(
        "note",
        "PRESENCE_JOURNAL_FSYNC=always keeps an event only until Redis has it, and in a power cut Redis loses up to "
        "the last second.",
        "redis-cli CONFIG SET appendfsync always, and the same in its configuration file.",
    ),
    # The journal
    "P030": Code(
        "error",
        "The receiver cannot store anything: it answers 503, and OpenIM sends nothing twice.",
        "Make the directory writable for the receiver's user (10006 in the image), or set PRESENCE_JOURNAL_DIR.",
    ),
    "P031": Code(
        "error",
        "Two processes could use the same folder, so the receiver refuses to store events there.",
        "Put PRESENCE_JOURNAL_DIR on a local disk.",
    ),
    "P032": Code(
        "warning",
        "Lines with a wrong checksum were skipped: the disk is failing, or somebody changed the file.",
        "Check the disk, examine the *.damaged file, then remove it.",
    ),
    "P033": Code(
        "error",
        "Accepted events wait in these files until they can be read; no lease runs out meanwhile.",
        "The receiver's log names the files and the error: fix the permissions, the mount or the disk.",
    ),
    "P034": Code(
        "warning",
        "Each answer waits for a write there; when the network stalls, OpenIM's callbacks are lost.",
        "Put PRESENCE_JOURNAL_DIR on a local disk.",
    ),
    "P035": Code(
        "warning",
        "Events that Redis does not have yet are lost when the machine or the container restarts.",
        "Put PRESENCE_JOURNAL_DIR on a disk; in a container, on a volume.",
    ),
    "P036": Code(
        "warning",
        "In a long outage of Redis the disk fills up before the journal reaches its limit.",
        "Free the disk, or lower PRESENCE_JOURNAL_MAX_BYTES; each of PRESENCE_PROCESSES may use that much.",
    ),
    "P037": Code(
        "error",
        "When the disk is full, the receiver answers 503, and OpenIM sends nothing twice.",
        "Free the disk, or set PRESENCE_JOURNAL_DIR to another.",
    ),
    "P038": Code(
        "warning",
        "Events that Redis does not have yet wait there: only a receiver on this directory can push them.",
        "Start a receiver with this PRESENCE_JOURNAL_DIR.",
    ),
    "P039": Code(
        "warning",
        "Pushed events stay in the journal until the server can no longer lose them, and take space there.",
        "Fix what is named: usually Sentinels that do not answer, or a server that was replaced.",
    ),
    # The receiver
    "P040": Code(
        "error",
        "It answers 503, and OpenIM sends nothing twice: what it refuses is lost.",
        "Fix what is named: usually a full or read-only disk, or a Redis that has been away for long.",
    ),
    "P041": Code(
        "error",
        "Nothing takes OpenIM's callbacks, and it sends nothing twice.",
        "Start the receiver, or let its port through: PRESENCE_HOST and PRESENCE_PORT say where it listens.",
    ),
    "P042": Code(
        "error",
        "OpenIM's callbacks go to whatever answers there, or are refused.",
        "See which program has the port (ss -ltnp), and with which settings the receiver runs.",
    ),
    "P043": Code(
        "warning",
        "A gateway of OpenIM sends with two goroutines, each waiting for its answer: it delivers at most 2 / (answer "
        "time) callbacks a second, and silently drops the rest.",
        "Raise PRESENCE_PROCESSES, or find out what the disk waits for; PRESENCE_JOURNAL_FSYNC=always costs an fsync.",
    ),
    "P044": Code(
        "error",
        "More than half of the goroutines that send OpenIM's callbacks wait for an answer: in a burst it drops some.",
        "Raise PRESENCE_PROCESSES, run more receivers, or find out what makes answers slow.",
    ),
    "P045": Code(
        "error",
        "OpenIM verifies the certificate and sends nothing over a connection that fails.",
        "Replace PRESENCE_TLS_CERT and PRESENCE_TLS_KEY; the receiver notices without a restart.",
    ),
    "P046": Code(
        "warning",
        "When it expires, OpenIM sends nothing any more.",
        "Replace PRESENCE_TLS_CERT and PRESENCE_TLS_KEY; the receiver notices without a restart.",
    ),
    "P047": Code(
        "error",
        "Everything that OpenIM sends is refused: presence stands still, and OpenIM sends nothing twice.",
        "Fix what the reason names: credentials, path or networks, or an OpenIM whose callbacks have an unknown form.",
    ),
    "P048": Code(
        "error",
        "It takes connections and answers none: OpenIM's callbacks time out and are lost.",
        "Continue the process (kill -CONT) or restart it: what it had accepted is in its journal.",
    ),
    "P049": Code(
        "error",
        "Events wait in the journal, and presence stands still.",
        "Fix the queue's Redis; the receiver's log says what it answers.",
    ),
    # Queue and workers
    "P050": Code("error", "Events wait in the queue, and presence stands still.", "Start one: presence worker."),
    "P051": Code(
        "error",
        "Events wait in the queue, and presence stands still.",
        "rq resume --url with the queue's URL.",
    ),
    "P052": Code(
        "error",
        "OpenIM sends each callback once; if no receiver takes it, it is lost.",
        "Start one: presence receiver. If one runs, its log says what the queue's Redis answers.",
    ),
    "P053": Code(
        "error",
        "Presence is late by that much.",
        "Start more workers, or fix the Redis for presence; the workers' log says what it answers.",
    ),
    "P054": Code(
        "error",
        "These events are not applied, and wait for a person.",
        "Run presence failed list, fix the cause, then run presence failed requeue --all.",
    ),
    "P055": Code(
        "error",
        "These events were accepted but are not applied: presence is late by that much.",
        "Fix the queue's Redis; restart a silent receiver, or start another on the same journal directory.",
    ),
    "P056": Code(
        "warning",
        "Its batch is taken over within a minute; fewer workers are left.",
        "Restart it: kill -CONT, then kill, or docker compose up -d worker. If it was killed, this ends when a worker "
        "starts in its place on that machine, else after 10 minutes.",
    ),
    "P057": Code(
        "warning",
        "Lags and the beginning of leases are wrong by that much.",
        "Keep NTP running on that machine.",
    ),
    "P058": Code(
        "note",
        "Each is tried five times within two minutes, then it fails for good.",
        "presence failed list has the reason.",
    ),
    "P059": Code(
        "note",
        "If it was retired on purpose, it is forgotten after a while.",
        "Restart it if it should run.",
    ),
    # Leases and OpenIM's gateways
    "P060": Code(
        "error",
        "OpenIM 3.8.2 and later repeats an online callback every 10 or 20 minutes: connected users are shown offline "
        "in between.",
        "Set PRESENCE_ONLINE_LEASE_SECONDS to 1800, on all workers, or to 0.",
    ),
    "P061": Code(
        "warning",
        "Releases before 3.8.2 repeat no online callback: a lease ends every session that lasts longer.",
        "Set PRESENCE_ONLINE_LEASE_SECONDS to 0, unless OpenIM is 3.8.2 or later.",
    ),
    "P062": Code(
        "error",
        "A gateway repeats the online callback of at most 26,000 users at a time: the others' leases run out, and "
        "they are shown offline while connected.",
        "Add gateways, or set PRESENCE_ONLINE_LEASE_SECONDS to 0.",
    ),
    "P063": Code(
        "warning",
        "Its callbacks count as stamped when they are received, so those of one user are ordered by their arrival.",
        "Keep NTP running on that gateway's machine; the workers' log names its address.",
    ),
    "P064": Code(
        "warning",
        "The newest stamp wins: if the clocks of gateways differ, an older callback may win.",
        "Keep NTP running on the machines of that gateway and of the receiver.",
    ),
    "P065": Code(
        "warning",
        "The users in these batches are shown as they were before, until their next event.",
        "Look at answer times and receivers (docs/operations.md, PresenceGatewayBatchesLost).",
    ),
    "P066": Code(
        "warning",
        "OpenIM sends nothing for the users that a stopped or killed gateway had: they stay online.",
        "Run presence reconcile --online. Or set PRESENCE_ONLINE_LEASE_SECONDS=1800 on all workers, with OpenIM 3.8.2 "
        "or later.",
    ),
    "P067": Code(
        "note",
        "OpenIM sends nothing for the users that it had: those who did not come back stay online.",
        "Run presence reconcile --online. Or set PRESENCE_ONLINE_LEASE_SECONDS=1800 on all workers, with OpenIM 3.8.2 "
        "or later.",
    ),
    "P068": Code(
        "note",
        "A gateway's clock was more than a minute ahead; its callbacks counted as stamped when they were received.",
        "Make sure that NTP runs on the machines of OpenIM's gateways.",
    ),
    "P069": Code(
        "note",
        "Silence means nothing while events may wait somewhere, so sessions that are over stay online for longer.",
        "Fix what is named; after a gap of ours it passes by itself within a lease.",
    ),
    # OpenIM's configuration
    "P070": Code(
        "warning",
        "It is unknown what OpenIM calls back; it may be nothing.",
        "Name the directory that OpenIM reads: the one after -c in its command line, or its ConfigMap.",
    ),
    "P071": Code(
        "error",
        "OpenIM does not start with such a file, or reads another one.",
        "Fix the line that is named. A template must be filled in first.",
    ),
    "P072": Code(
        "error",
        "No release reads them there: nothing is sent, and no error is shown.",
        "Move them where the release at hand reads them.",
    ),
    "P073": Code(
        "error",
        "OpenIM sends nothing, and only its log says so.",
        "url: http://HOST:10006/callbackExample (callbackUrl: up to 2.3.3), then restart OpenIM.",
    ),
    "P074": Code(
        "error",
        "Go's HTTP client refuses such a URL: nothing is sent, and only OpenIM's log says so.",
        "url: http://HOST:10006/callbackExample, with %40 for @ and the like in a password; then restart OpenIM.",
    ),
    "P075": Code(
        "error",
        "OpenIM's callbacks go there, and it sends nothing twice.",
        "Correct host and port in the URL and restart OpenIM, or start the receiver.",
    ),
    "P076": Code(
        "error",
        "The receiver answers 401, and OpenIM sends nothing twice.",
        "Put the user and the password of PRESENCE_BASIC_AUTH into the URL, with %40 for @ and the like, and "
        "restart OpenIM; docs/access.md.",
    ),
    "P077": Code(
        "error",
        "The receiver answers 404, and OpenIM sends nothing twice.",
        "Let the URL's path begin with PRESENCE_CALLBACK_PATH, and restart OpenIM.",
    ),
    "P078": Code(
        "error",
        "The two cannot talk to each other: nothing arrives.",
        "Write https:// in the URL if PRESENCE_TLS_CERT is set, else http://, and restart OpenIM.",
    ),
    "P079": Code(
        "warning",
        "OpenIM appends the command to it as text, so the query swallows it; callbacks whose body does not name it are "
        "refused, and so are those that are to be forwarded.",
        "Move what the query has into the path; PRESENCE_CALLBACK_PATH may have a secret.",
    ),
    "P080": Code(
        "error",
        "To a container, loopback is the container itself: OpenIM calls itself.",
        "Write the receiver's name or address as OpenIM's container sees it into the URL.",
    ),
    "P081": Code(
        "note",
        "That is right only if OpenIM runs on the receiver's machine, and not in a container.",
        "Otherwise write the receiver's name or address as OpenIM sees it.",
    ),
    "P082": Code(
        "error",
        "OpenIM sends only what is enabled: without online callbacks users are offline from the first one on, without "
        "offline callbacks they stay online.",
        "Set enable: true under each that is named, and restart OpenIM.",
    ),
    "P083": Code(
        "note",
        "Since 3.0 a kick arrives as offline; up to 2.3.3 a kicked user stays online.",
        "Set enable: true under it, and restart OpenIM.",
    ),
    "P084": Code(
        "warning",
        "Without a timeout OpenIM waits for 15 s (3.7 and "
        "later) or for ever (before), and sends nothing else meanwhile.",
        "Set its timeout to 5, and restart OpenIM.",
    ),
    "P085": Code(
        "error",
        "OpenIM does not start with it, or ignores it.",
        "enable: true or false, timeout: whole seconds, each in the file itself.",
    ),
    "P086": Code(
        "error",
        "3.0.0, 3.1.0, 3.8.0 and 3.8.1 send none of these callbacks, whatever their configuration says.",
        "Upgrade OpenIM.",
    ),
    "P087": Code(
        "warning",
        "3.8.0 and 3.8.1 send none of these callbacks, whatever their configuration says.",
        "See which release runs (its log says so at the start), and upgrade it if it is one of these.",
    ),
    "P088": Code(
        "warning",
        "Releases after 3.8.3 have a config center in etcd: if it is enabled, it overrides every file.",
        "etcdctl get /open-im/config/enable-config-center; if it says enable, see /open-im/config/webhooks.yml there.",
    ),
    "P089": Code(
        "note",
        "The file does not show what counts.",
        "Keep one of them.",
    ),
    # The doctor itself
    "P090": Code(
        "error",
        "What this probe should have checked is unknown, and may be wrong.",
        "Fix the other findings first, then run presence doctor again.",
    ),
    # Comparing with OpenIM
    "P100": Code(
        "warning",
        "What OpenIM did not send, or lost, stays wrong in presence until OpenIM can be asked.",
        "Fix what is named: PRESENCE_OPENIM_API, PRESENCE_OPENIM_SECRET, PRESENCE_OPENIM_ADMIN, or OpenIM itself.",
    ),
    "P101": Code(
        "warning",
        "What OpenIM did not send, or lost, stays wrong in presence until OpenIM can be asked.",
        "Start OpenIM's API, or correct host and port in PRESENCE_OPENIM_API: 10002 as shipped, as seen from here.",
    ),
    "P102": Code(
        "warning",
        "We ask nothing over such a connection, since the secret might go to somebody else.",
        "Use a certificate for the name in PRESENCE_OPENIM_API, or set SSL_CERT_FILE to its authority's certificate.",
    ),
    "P103": Code(
        "warning",
        "Without it OpenIM does not say who is online: what it did not send stays wrong in presence.",
        "Set PRESENCE_OPENIM_SECRET to the secret in OpenIM's share.yml (config.yaml up to 3.6).",
    ),
    "P104": Code(
        "warning",
        "OpenIM tells only its admins who is online: what it did not send stays wrong in presence.",
        "Set PRESENCE_OPENIM_ADMIN to a user in imAdminUserID in OpenIM's share.yml, best to one for presence alone.",
    ),
    "P105": Code(
        "warning",
        "It cannot be asked, and may have got the secret: what OpenIM did not send stays wrong in presence.",
        "Correct PRESENCE_OPENIM_API: http or https, and host and port of OpenIM's API, 10002 as shipped.",
    ),
    "P106": Code(
        "warning",
        "OpenIM's API asks each of its gateways in turn: one that hangs holds up every answer, and none counts.",
        "See the log of OpenIM's API, and whether each of its gateways runs and can be reached from there.",
    ),
    "P107": Code(
        "warning",
        "Comparisons come late or not at all: what OpenIM did not send stays wrong in presence for longer.",
        "Raise the limit of OpenIM's API (ratelimiter in openim-api.yml), or PRESENCE_RECONCILE_SECONDS.",
    ),
    "P108": Code(
        "warning",
        "OpenIM's gateways stamp callbacks, and the newest stamp wins: if clocks differ, an older callback may win.",
        "Keep NTP running on OpenIM's machines and on this one.",
    ),
}
