import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import type { TestProject } from 'vitest/node'
import { startEmbeddedPostgres } from './embedded.ts'
import { migrate } from './migrate.ts'

export type DatabaseConnection = { host: string; port: number; user: string; password: string; database: string }

declare module 'vitest' {
  interface ProvidedContext {
    postgres: DatabaseConnection
  }
}

const template = 'sdp_mcp_template'

/** Vitest global set-up: one PostgreSQL server with a migrated template database, for all test files. */
export default function setup(project: TestProject): Promise<() => Promise<void>> {
  return provideDatabase(project)
}

/** @param listen - addresses beside 127.0.0.1, e.g. the one by which containers reach this host */
export async function provideDatabase(project: TestProject, listen: string[] = []): Promise<() => Promise<void>> {
  const { connection, close } = await startTemplateServer(listen)
  project.provide('postgres', connection)
  return close
}

export type TemplateServer = {
  connection: DatabaseConnection
  /** ends the server and starts it again on the same data and port, as an upgrade does */
  restart(): Promise<void>
  /** Every process of the server stands still, and nobody is told. @returns lets them go on */
  pause(): Promise<() => void>
  close(): Promise<void>
}

/** A server with a migrated template database that {@link cloneDatabase} copies. */
export async function startTemplateServer(listen: string[] = []): Promise<TemplateServer> {
  const folder = await mkdtemp(join(tmpdir(), 'sdp-mcp-test-postgres-'))
  const options = {
    folder,
    port: await freePort(),
    user: 'sdpmcpservice',
    listen,
    password: randomBytes(16).toString('hex'),
    // durability is not what tests ask for, speed is
    settings: { fsync: 'off', synchronous_commit: 'off', full_page_writes: 'off', max_connections: '300' },
  }
  let server = await startEmbeddedPostgres(options)
  const connection = {
    host: '127.0.0.1',
    port: server.port,
    user: server.user,
    password: server.password,
    database: 'postgres',
  }
  await query(connection, `create database ${template}`)
  await migrate({ ...connection, database: template })
  return {
    connection,
    async restart() {
      await server.stop()
      server = await startEmbeddedPostgres(options)
    },
    async pause() {
      const leader = server.process.pid!
      const all = [leader, ...(await childrenOf(leader))]
      for (const pid of all) process.kill(pid, 'SIGSTOP')
      return () => {
        for (const pid of all)
          try {
            process.kill(pid, 'SIGCONT')
          } catch {
            // it ended meanwhile
          }
      }
    },
    async close() {
      await server.stop()
      await rm(folder, { recursive: true, force: true })
    },
  }
}

/**
 * A database of its own for one test file, cloned from the migrated template.
 * @param server - `inject('postgres')` of vitest
 */
export async function cloneDatabase(server: DatabaseConnection): Promise<DatabaseConnection & AsyncDisposable> {
  const database = `test_${randomBytes(6).toString('hex')}`
  await query(server, `create database ${database} template ${template}`)
  return {
    ...server,
    database,
    [Symbol.asyncDispose]: () => query(server, `drop database if exists ${database} with (force)`),
  }
}

async function childrenOf(pid: number): Promise<number[]> {
  const stats = await Promise.all(
    (await readdir('/proc'))
      .filter(name => /^\d+$/.test(name))
      .map(async name => [Number(name), await readFile(`/proc/${name}/stat`, 'utf8').catch(() => '')] as const),
  )
  // the parent stands behind the name, which may contain anything, and the state
  return stats.filter(([, stat]) => Number(/^.*\) \S (\d+)/s.exec(stat)?.[1]) === pid).map(([child]) => child)
}

async function query(connection: DatabaseConnection, sql: string): Promise<void> {
  const client = new pg.Client(connection)
  await client.connect()
  try {
    await client.query(sql)
  } finally {
    await client.end()
  }
}

/** A port nobody listens on at the moment. */
export function freePort(): Promise<number> {
  return new Promise((done, failed) => {
    const probe = createServer()
    probe.once('error', failed)
    probe.listen(0, '127.0.0.1', () => {
      const { port } = probe.address() as { port: number }
      probe.close(() => done(port))
    })
  })
}
