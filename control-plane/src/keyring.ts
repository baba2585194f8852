import { open, SealError, type SealingKey } from '@sdp-mcp/instance/seal'
import { AppError } from './errors.ts'

/**
 * The master keys: everything new is sealed with the current one, and what was sealed with an older one still opens.
 * Read anew on request, so that a rotation needs no restart.
 */
export interface Keyring {
  current(): SealingKey
  all(): readonly SealingKey[]
  /** @throws ConfigError and keeps the keys it had */
  reload(): void
}

export type MasterKeys = { current: SealingKey; old: readonly SealingKey[] }

export function createKeyring(load: () => MasterKeys): Keyring {
  let keys = load()
  return {
    current: () => keys.current,
    all: () => [keys.current, ...keys.old],
    reload() {
      keys = load()
    },
  }
}

/** A keyring of one key. */
export function fixedKeyring(key: SealingKey): Keyring {
  return createKeyring(() => ({ current: key, old: [] }))
}

/** Which key a sealed value names (see seal.ts). */
export function keyIdOf(sealed: string): string {
  return sealed.split('.')[1] ?? ''
}

/**
 * Opens what stands sealed in our own tables.
 * @param context - see `sealContext`; the table in it is named in the error
 * @throws AppError `key-unknown`: never garbage
 */
export function openStored(keys: SealingKey | readonly SealingKey[], sealed: string, context: string): string {
  try {
    return open(keys, sealed, context)
  } catch (error) {
    if (!(error instanceof SealError)) throw error
    const [table] = context.split('.')
    throw new AppError(
      'key-unknown',
      error.kind === 'unknown-key'
        ? `A secret in table ${table} was sealed with the master key ${keyIdOf(sealed)}, which is not configured. Give the control plane that key as SDP_MASTER_KEY, or beside the current one as SDP_MASTER_KEYS_OLD (each also as _FILE). Nothing was overwritten.`
        : `A secret in table ${table} was altered. Restore the table from a backup.`,
      { cause: error },
    )
  }
}
