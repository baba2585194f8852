import { setTimeout as delay } from 'node:timers/promises'
import { appendAudit } from './audit.ts'
import type { Db } from './db.ts'
import { AppError } from './errors.ts'
import type { StatementSigner } from './identity.ts'
import type { Keyring } from './keyring.ts'
import type { Logger } from './log.ts'
import type { Rewrapped, Vault } from './vault.ts'

/**
 * Rotation of the master key while everything runs. With the new key configured as the current one and the old one beside
 * it, {@link MasterKey.rewrap} wraps every data key and signing key anew, in batches of one transaction each. What is done
 * is seen from the rows themselves, so an interrupted rotation goes on where it stopped, and several control planes may
 * run it at once. The keys that were wrapped stay the same: no instance notices.
 */
export interface MasterKey {
  /** Reads the configured keys anew and starts; a rotation under way is joined. */
  rewrap(actor: string): Promise<void>
  status(): Promise<MasterKeyStatus>
  /**
   * What was sealed with keys that are not configured.
   * @throws AppError `key-unknown` when none of the stored data keys could be opened: this is the wrong key, or the wrong database
   */
  check(): Promise<void>
  close(): Promise<void>
}

export type MasterKeyStatus = {
  /** id of the key that everything new is sealed with: the first 12 hex digits of its SHA-256 */
  current: string
  /** every key that is configured or that something was sealed with */
  keys: { id: string; configured: boolean; dataKeys: number; signingKeys: number }[]
  /** how many values are not sealed with the current key yet */
  remaining: number
  running: boolean
  /** why the last rotation ended early */
  failure: string | null
}

const batchSize = 50
const pauseMs = 5

export function createMasterKey({
  db,
  keyring,
  vault,
  signer,
  reloadElsewhere = async () => {},
  log,
}: {
  db: Db
  keyring: Keyring
  vault: Pick<Vault, 'rewrap'>
  signer: Pick<StatementSigner, 'rewrap'>
  /** makes other workers read the keys anew, before anything is sealed with a key they do not know */
  reloadElsewhere?: () => Promise<unknown>
  log: Logger
}): MasterKey {
  let running: Promise<void> | undefined
  let failure: string | null = null
  let closed = false

  async function rewrapAll(actor: string): Promise<void> {
    const to = keyring.current().id
    await appendAudit(db, { actor, action: 'master-key.rewrap-started', detail: { to } })
    const done = { dataKeys: 0, signingKeys: 0, unopened: 0 }
    for (const [kind, step] of [
      ['dataKeys', (after: string | null) => vault.rewrap(after, batchSize)],
      ['signingKeys', (after: string | null) => signer.rewrap(after, batchSize)],
    ] as const) {
      let after: string | null = null
      do {
        if (closed) return
        const batch: Rewrapped = await step(after)
        done[kind] += batch.rewrapped
        done.unopened += batch.unopened.length
        for (const id of batch.unopened) log.error({ kind, id }, 'master-key.rewrap.unopened')
        after = batch.last
        // others want the database, too
        await delay(pauseMs)
      } while (after !== null)
    }
    await appendAudit(db, { actor, action: 'master-key.rewrap-finished', detail: { to, ...done } })
    log.info({ to, ...done }, 'master-key.rewrap.finished')
    if (done.unopened > 0)
      failure = `${done.unopened} values were sealed with keys that are not configured, and stay as they are. See keys; add the missing ones to SDP_MASTER_KEYS_OLD and call again.`
  }

  async function usage() {
    const rows = await db.query<{ id: string; data_keys: number; signing_keys: number }>(
      `select id, sum(data_keys)::integer as data_keys, sum(signing_keys)::integer as signing_keys from (
         select split_part(wrapped_key, '.', 2) as id, 1 as data_keys, 0 as signing_keys from data_keys
         union all select split_part(private_sealed, '.', 2), 0, 1 from signing_keys) used group by id order by id`,
    )
    const configured = keyring.all().map(({ id }) => id)
    const used = new Map(rows.map(row => [row.id, row]))
    return [...new Set([...configured, ...used.keys()])].map(id => ({
      id,
      configured: configured.includes(id),
      dataKeys: used.get(id)?.data_keys ?? 0,
      signingKeys: used.get(id)?.signing_keys ?? 0,
    }))
  }

  return {
    async rewrap(actor) {
      if (running) return
      keyring.reload()
      await reloadElsewhere()
      // somebody else may have begun meanwhile
      if (running) return
      failure = null
      running = rewrapAll(actor)
        .catch(error => {
          failure = error instanceof AppError ? error.message : 'It was interrupted. Call again; it goes on.'
          log.error({ error }, 'master-key.rewrap.failed')
        })
        .finally(() => {
          running = undefined
        })
    },

    async status() {
      const keys = await usage()
      const current = keyring.current().id
      const remaining = keys
        .filter(({ id }) => id !== current)
        .reduce((sum, { dataKeys, signingKeys }) => sum + dataKeys + signingKeys, 0)
      return { current, keys, remaining, running: running !== undefined, failure }
    },

    async check() {
      const keys = await usage()
      const lost = keys.filter(({ configured, dataKeys }) => !configured && dataKeys > 0)
      if (lost.length === 0) return
      const ids = lost.map(({ id }) => id).join(', ')
      const where = 'SDP_MASTER_KEY, or beside the current one in SDP_MASTER_KEYS_OLD (each also as _FILE)'
      if (!keys.some(({ configured, dataKeys }) => configured && dataKeys > 0))
        throw new AppError(
          'key-unknown',
          `Every user's data key was sealed with the master key ${ids}, but ${keyring.current().id} is configured. Start with the right one as ${where}; or this is another installation's database. Nothing was changed.`,
        )
      log.error(
        { lost },
        `master-key.unknown: some users' data keys were sealed with ${ids}. Their instances cannot start until it is in ${where}.`,
      )
    },

    async close() {
      closed = true
      await running
    },
  }
}
