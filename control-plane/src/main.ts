import cluster from 'node:cluster'
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { migrate } from '@sdp-mcp/migrations'
import manifest from '../package.json' with { type: 'json' }
import { ConfigError, loadConfig, loadSetup } from './config.ts'
import { openControlPlane } from './control-plane.ts'
import { awaitDatabase, prepareControlPlaneRole } from './database-setup.ts'
import { createDb, poolSizes } from './db.ts'
import { createDockerRuntime } from './fleet/docker-runtime.ts'
import { createProcessRuntime } from './fleet/process-runtime.ts'
import { createKeyring } from './keyring.ts'
import { createLog } from './log.ts'
import { resolveHost } from './sdp-settings.ts'
import { connectSiblings, noSiblings } from './workers/siblings.ts'
import { supervise } from './workers/supervisor.ts'

/** The program: reads the environment, opens the control plane, and ends it in order. Imported by nobody. */

const { version } = manifest
const exitCodes = { config: 78, unavailable: 69, internal: 70 } // sysexits.h

if (process.argv.includes('--version')) {
  process.stdout.write(`${version}\n`)
  process.exit(0)
}

// beside a bundle, or where they are in the source tree
const beside = (bundled: string, source: string) => {
  const path = join(import.meta.dirname, bundled)
  return existsSync(path) ? path : join(import.meta.dirname, source)
}
const migrations = beside('migrations', '../../migrations')

// V8 makes objects that often outlive a collection of the young ones, such as the listeners of a call under way, among the
// old at once. There a dead one keeps the whole call alive that it names, until the next full collection: at 64 calls at a
// time nearly all of them, a tenth of the CPU time and most of the worst latencies (docs/performance.md).
setFlagsFromString('--no-allocation-site-pretenuring')

let log = createLog('info')
if (process.argv.includes('--prepare-database')) await prepareDatabase()

const config = read(() => loadConfig(process.env))
const worker = cluster.isWorker ? Number(process.argv[process.argv.indexOf('--worker') + 1]) : undefined
log = createLog(config.logLevel).child(worker === undefined ? {} : { worker })
const now = Date.now
const startedAt = now()
if (worker === undefined) {
  const { runtime, workers } = config
  log.info({ version, node: process.version, runtime, workers }, 'control-plane.starting')
}

const login = { ...config.database, password: config.database.password.reveal() }
// workers find the schema as their primary left it
if (worker === undefined)
  await awaitDatabase(config.database, log, async () => {
    await migrate(login, { folder: migrations, log: message => log.info(message) })
  }).catch(fail)
if (config.workers > 1 && worker === undefined)
  await supervise({
    count: config.workers,
    log,
    onListening: () => process.send?.('listening'),
    giveUpCode: exitCodes.unavailable,
  })
const siblings = worker === undefined ? noSiblings : connectSiblings({ channel: process, count: config.workers, log })

const db = createDb({
  ...login,
  ...poolSizes(config.workers),
  onError: error => log.warn({ error }, 'database.connection.lost'),
})
const keyring = createKeyring(() => {
  // read again for a rotation: files may hold another key by now
  const { masterKey: current, oldMasterKeys: old } = loadConfig(process.env)
  return { current, old }
})
const runtime =
  config.runtime === 'docker'
    ? createDockerRuntime({ ...config.instance, engine: config.dockerSocket, installation: config.installation, log })
    : createProcessRuntime({
        entry: config.instance.entry ?? beside('instance.mjs', '../../instance/src/main.ts'),
        log,
      })

const controlPlane = await openControlPlane({
  config,
  version,
  startedAt,
  db,
  keyring,
  runtime,
  siblings,
  errorPages: {
    read: code => readFile(join(beside('errors', '../../docs/errors'), `${code}.md`), 'utf8').catch(() => undefined),
  },
  resolve: resolveHost,
  log,
  now,
}).catch(fail)
await controlPlane.start().catch(fail)
await controlPlane.listen().catch(fail)
// a parent that waits over IPC is told, and takes us along when it ends
process.send?.('listening')

const callGraceMs = 8_000
// Compose and systemd kill after 30 s
const endDeadlineMs = 25_000
let ending: Promise<void> | undefined
for (const event of ['SIGTERM', 'SIGINT', 'disconnect'] as const) process.once(event, () => void end(event))

function end(why: string): Promise<void> {
  ending ??= (async () => {
    log.info({ why }, 'control-plane.ending')
    const deadline = setTimeout(() => process.exit(exitCodes.internal), endDeadlineMs)
    await controlPlane.close(callGraceMs)
    await runtime.close()
    await db.close()
    clearTimeout(deadline)
    log.info('control-plane.ended')
    process.exit(0)
  })()
  return ending
}

function read<T>(load: () => T): T {
  try {
    return load()
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    process.stderr.write(`sdp-mcp: ${error.message}\nAll variables are explained in .env.example.\n`)
    process.exit(exitCodes.config)
  }
}

/** As the owner of the database: brings the schema up to date and makes the control plane's own role; then ends. */
async function prepareDatabase(): Promise<never> {
  const { database, role } = read(() => loadSetup(process.env))
  const owner = { ...database, password: database.password.reveal() }
  await awaitDatabase(database, log, async () => {
    await migrate(owner, { folder: migrations, log: message => log.info(message) })
    const db = createDb(owner)
    try {
      await prepareControlPlaneRole(db, { name: role.name, password: role.password.reveal() })
    } finally {
      await db.close()
    }
  }).catch(fail)
  log.info({ role: role.name }, 'database.prepared')
  process.exit(0)
}

function fail(error: Error): never {
  log.fatal({ error }, 'control-plane.failed')
  process.stderr.write(`sdp-mcp: ${error.message}\n`)
  process.exit(exitCodes.unavailable)
}
