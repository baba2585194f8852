import { randomBytes } from 'node:crypto'
import { chmod, mkdir, open as openFile, readFile, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { z } from 'zod'
import { connectionStates } from '../contract.ts'
import { type SealingKey, seal } from '../seal.ts'
import {
  type Change,
  contexts,
  fingerprint,
  type GivenCredentials,
  mintWindowMs,
  opened,
  planTakeOver,
  type StoredConnection,
  type TokenStore,
} from './store.ts'

const instant = z.iso.datetime().transform(text => new Date(text))
const stateFile = z.object({
  version: z.literal(1),
  client_id: z.string(),
  client_secret_sealed: z.string().nullable(),
  grant_code_sealed: z.string().nullable(),
  refresh_token_sealed: z.string().nullable(),
  access_token_sealed: z.string().nullable(),
  scopes: z.array(z.string()),
  state: z.enum(connectionStates),
  reason_code: z.string().nullable(),
  reason: z.string().nullable(),
  last_refreshed_at: instant.nullable(),
  minted_at: instant.nullable(),
  expires_at: instant.nullable(),
  /** fingerprints of the grant codes and refresh tokens taken from the environment so far */
  taken: z.array(z.string()),
})
type StateFile = z.infer<typeof stateFile>

export type FileStoreOptions = {
  /** the state file; `<path>.mints` and `<path>.lock` stand beside it */
  path: string
  userId: string
  key: SealingKey
  /** how long to wait for another process */
  lockTimeoutMs?: number
  now?: () => number
}

export type FileStore = TokenStore & {
  /** Takes over what the environment gives at each start. */
  takeOver(given: GivenCredentials): Promise<void>
}

/**
 * Tokens in a sealed file that only its owner can read, for one person without a database. The file is replaced as a
 * whole; processes take turns by the lock of an empty SQLite file, which the kernel releases when its holder dies.
 */
export function fileStore(options: FileStoreOptions): FileStore {
  const { path, userId, key, lockTimeoutMs = 20_000, now = Date.now } = options
  const context = contexts(userId)
  const mintsPath = `${path}.mints`

  async function load(): Promise<StateFile | undefined> {
    const text = await readIfThere(path)
    if (text === undefined) return undefined
    try {
      return stateFile.parse(JSON.parse(text))
    } catch (cause) {
      throw new Error(`${path} is not a token file of this program. Move it away and authorize again.`, { cause })
    }
  }

  const toConnection = (file: StateFile): StoredConnection =>
    opened(
      {
        ...file,
        life_ms: file.expires_at && file.expires_at.getTime() - now(),
        age_ms: file.minted_at && now() - file.minted_at.getTime(),
      },
      userId,
      key,
    )

  async function mints(): Promise<number[]> {
    const lines = (await readIfThere(mintsPath))?.split('\n') ?? []
    return lines
      .map(Number)
      .filter(at => at > now() - mintWindowMs && at <= now() + mintWindowMs)
      .sort((a, b) => b - a)
  }

  /** A secret that cannot be opened counts as another one: the given one replaces it. */
  function secretOf(file: StateFile): string | undefined {
    try {
      return toConnection(file).clientSecret()
    } catch {
      return undefined
    }
  }

  async function locked<T>(work: () => Promise<T>): Promise<T> {
    await mkdir(dirname(path), { recursive: true, mode: 0o700 })
    // imported here because only this store needs it
    const { DatabaseSync } = await import('node:sqlite')
    const lockPath = `${path}.lock`
    await (await openFile(lockPath, 'a', 0o600)).close()
    const lock = new DatabaseSync(lockPath, { timeout: 0 })
    try {
      for (const deadline = Date.now() + lockTimeoutMs; ; ) {
        try {
          lock.exec('begin exclusive')
          break
        } catch (error) {
          if ((error as { errcode?: number }).errcode !== 5 /* SQLITE_BUSY */) throw error
          if (Date.now() > deadline)
            throw new Error(`another process has held ${lockPath} for ${lockTimeoutMs / 1000} s`, { cause: error })
          await delay(10 + Math.random() * 30)
        }
      }
      return await work()
    } finally {
      lock.close()
    }
  }

  const apply = (file: StateFile, change: Change): StateFile => ({
    ...file,
    ...(change.state !== undefined && { state: change.state }),
    ...(change.scopes !== undefined && { scopes: change.scopes }),
    ...(change.reasonCode !== undefined && { reason_code: change.reasonCode }),
    ...(change.reason !== undefined && { reason: change.reason }),
    ...(change.grantCode === null && { grant_code_sealed: null }),
    ...(change.client && {
      client_id: change.client.clientId,
      client_secret_sealed: seal(key, change.client.clientSecret, context.client_secret_sealed),
    }),
    ...(change.refreshToken !== undefined && {
      refresh_token_sealed:
        change.refreshToken === null ? null : seal(key, change.refreshToken, context.refresh_token_sealed),
    }),
    ...(change.accessToken && {
      access_token_sealed: seal(key, change.accessToken.token, context.access_token_sealed),
      minted_at: new Date(now()),
      last_refreshed_at: new Date(now()),
      expires_at: new Date(now() + change.accessToken.lifeMs),
    }),
    ...(change.accessToken === null && { access_token_sealed: null, minted_at: null, expires_at: null }),
  })

  return {
    async read() {
      const file = await load()
      return file && toConnection(file)
    },

    mintAgesMs: async () => (await mints()).map(at => Math.max(0, now() - at)),

    exclusively: work =>
      locked(async () => {
        const before = await load()
        let after = before
        const result = await work({
          connection: before && toConnection(before),
          async recordMint() {
            await writePrivately(mintsPath, [now(), ...(await mints())].join('\n'))
          },
          async save(change) {
            if (!after) throw new Error('there is no connection to change')
            after = apply(after, change)
          },
        })
        if (after && after !== before) await writePrivately(path, JSON.stringify(after, null, 2))
        return result
      }),

    takeOver: given =>
      locked(async () => {
        const before = await load()
        const plan = planTakeOver(
          before && { clientId: before.client_id, clientSecret: secretOf(before), state: before.state },
          before?.taken ?? [],
          given,
        )
        const news = [plan.grantCode, plan.refreshToken].filter(value => value !== undefined)
        if (!plan.startOver && !plan.newSecret && news.length === 0) return
        const kept = before && !plan.startOver ? before : emptyFile(given.clientId, before?.taken ?? [])
        const after: StateFile = {
          ...kept,
          client_secret_sealed: seal(key, given.clientSecret, context.client_secret_sealed),
          ...(plan.grantCode !== undefined && {
            grant_code_sealed: seal(key, plan.grantCode, context.grant_code_sealed),
          }),
          ...(plan.refreshToken !== undefined && {
            refresh_token_sealed: seal(key, plan.refreshToken, context.refresh_token_sealed),
            access_token_sealed: null,
            minted_at: null,
            expires_at: null,
          }),
          state: plan.state,
          ...(plan.state !== kept.state && { reason_code: null, reason: null }),
          taken: [...kept.taken, ...news.map(fingerprint)].slice(-50),
        }
        await writePrivately(path, JSON.stringify(after, null, 2))
      }),

    async close() {},
  }
}

function emptyFile(clientId: string, taken: string[]): StateFile {
  return {
    version: 1,
    client_id: clientId,
    client_secret_sealed: null,
    grant_code_sealed: null,
    refresh_token_sealed: null,
    access_token_sealed: null,
    scopes: [],
    state: 'needs-authorization',
    reason_code: null,
    reason: null,
    last_refreshed_at: null,
    minted_at: null,
    expires_at: null,
    taken,
  }
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

/** Replaces a file as a whole, readable by its owner only, and on the disk before it has its name. */
export async function writePrivately(path: string, text: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 })
  const draft = `${path}.${randomBytes(6).toString('hex')}.new`
  try {
    const file = await openFile(draft, 'wx', 0o600)
    try {
      await file.writeFile(text)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(draft, path)
  } catch (error) {
    await rm(draft, { force: true })
    throw error
  }
  await chmod(path, 0o600)
}
