import { randomBytes } from 'node:crypto'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { cloneDatabase, type DatabaseConnection } from '@sdp-mcp/migrations/testing'
import pg from 'pg'
import { type Boot, databaseRole } from '../contract.ts'
import { generateSealingKey, type SealingKey, seal } from '../seal.ts'
import { contexts } from './store.ts'

export type ScriptedReply = { status?: number; body?: unknown; headers?: Record<string, string>; delayMs?: number }

/** An accounts server that answers as a test tells it, and remembers what it was asked. */
export type ScriptedAccounts = AsyncDisposable & {
  url: string
  calls: { path: string; form: Record<string, string> }[]
  tokenCalls(): number
  /** called for each request; by default a good refresh */
  reply: (form: Record<string, string>, path: string) => ScriptedReply | 'hang up'
}

export async function scriptedAccounts(): Promise<ScriptedAccounts> {
  const calls: ScriptedAccounts['calls'] = []
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk)
    const form = Object.fromEntries(new URLSearchParams(Buffer.concat(chunks).toString()))
    const path = new URL(request.url ?? '/', 'http://x').pathname
    calls.push({ path, form })
    const reply = scripted.reply(form, path)
    if (reply === 'hang up') return void request.socket.destroy()
    if (reply.delayMs) await new Promise(done => setTimeout(done, reply.delayMs))
    response.writeHead(reply.status ?? 200, { 'content-type': 'application/json', ...reply.headers })
    response.end(typeof reply.body === 'string' ? reply.body : JSON.stringify(reply.body ?? goodGrant()))
  })
  await new Promise<void>(done => server.listen(0, '127.0.0.1', done))
  const scripted: ScriptedAccounts = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    calls,
    tokenCalls: () => calls.filter(call => call.path === '/oauth/v2/token').length,
    reply: () => ({}),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      await new Promise(done => server.close(done))
    },
  }
  return scripted
}

export function fakeToken(): string {
  return `1000.${randomBytes(16).toString('hex')}.${randomBytes(16).toString('hex')}`
}

export function goodGrant(more: Record<string, unknown> = {}) {
  return {
    access_token: fakeToken(),
    expires_in: 3600,
    scope: 'SDPOnDemand.requests.ALL SDPOnDemand.setup.READ',
    token_type: 'Bearer',
    ...more,
  }
}

export type TestConnection = {
  clientId?: string
  clientSecret?: string | null
  grantCode?: string
  refreshToken?: string
  state?: string
}

export type TestDatabase = AsyncDisposable & {
  connection: DatabaseConnection
  /** as the owner of the schema */
  admin: pg.Pool
  /** A user as the control plane makes one: row, data key, database role, connection. */
  addUser(connection?: TestConnection): Promise<{ userId: string; key: SealingKey; database: Boot['database'] }>
}

export async function testDatabase(server: DatabaseConnection): Promise<TestDatabase> {
  const connection = await cloneDatabase(server)
  const admin = new pg.Pool({ ...connection, max: 3 })
  admin.on('error', () => {})
  const roles: string[] = []
  return {
    connection,
    admin,
    async addUser({ clientId = '1000.CLIENT', clientSecret = 'f00d', grantCode, refreshToken, state } = {}) {
      const username = `u${randomBytes(6).toString('hex')}`
      const { rows } = await admin.query<{ id: string }>(
        'insert into users (username, display_name) values ($1, $1) returning id',
        [username],
      )
      const userId = rows[0]!.id
      const key = generateSealingKey()
      const context = contexts(userId)
      const password = randomBytes(12).toString('hex')
      await admin.query(`create role ${databaseRole(userId)} login password '${password}' in role sdpmcp_instance`)
      roles.push(databaseRole(userId))
      const sealed = (text: string | null | undefined, column: keyof typeof context) =>
        text == null ? null : seal(key, text, context[column])
      await admin.query(
        `insert into oauth_tokens (user_id, client_id, client_secret_sealed, grant_code_sealed, refresh_token_sealed, state)
         values ($1, $2, $3, $4, $5, $6)`,
        [
          userId,
          clientId,
          sealed(clientSecret, 'client_secret_sealed'),
          sealed(grantCode, 'grant_code_sealed'),
          sealed(refreshToken, 'refresh_token_sealed'),
          state ?? (refreshToken === undefined ? 'needs-authorization' : 'connected'),
        ],
      )
      const { host, port, database } = connection
      return { userId, key, database: { host, port, database, user: databaseRole(userId), password } }
    },
    async [Symbol.asyncDispose]() {
      await admin.query(`delete from users`)
      await admin.end()
      await connection[Symbol.asyncDispose]()
      const cleaner = new pg.Client(server)
      await cleaner.connect()
      for (const role of roles) await cleaner.query(`drop role if exists ${role}`)
      await cleaner.end()
    },
  }
}
