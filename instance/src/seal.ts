import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto'

/**
 * A 256-bit AES key. `id` is the first 12 hex digits of the key's SHA-256: it names the key inside every
 * sealed value, so that a value says which key opens it.
 */
export type SealingKey = { readonly id: string; readonly bytes: Buffer }

/** Why a sealed value cannot be opened. `unknown-key`: sealed with a key we do not hold. `corrupt`: altered, moved from another row, or not a sealed value. */
export class SealError extends Error {
  readonly kind: 'unknown-key' | 'corrupt'
  constructor(kind: 'unknown-key' | 'corrupt', message: string) {
    super(message)
    this.name = 'SealError'
    this.kind = kind
  }
}

const nonceBytes = 12 // NIST SP 800-38D section 8.2: 96-bit nonces
const tagBytes = 16

/**
 * Makes a key of 32 raw bytes or of their base64 / base64url text.
 * @throws RangeError when it is not 32 bytes
 */
export function sealingKey(material: Buffer | string): SealingKey {
  const bytes = typeof material === 'string' ? Buffer.from(material.trim(), 'base64') : material
  if (bytes.length !== 32) throw new RangeError(`a sealing key has 32 bytes, this one has ${bytes.length}`)
  const key = { id: createHash('sha256').update(bytes).digest('hex').slice(0, 12) }
  // not enumerable, so that printing or serialising a key shows its id only
  Object.defineProperty(key, 'bytes', { value: bytes, enumerable: false })
  return Object.freeze(key as SealingKey)
}

export function generateSealingKey(): SealingKey {
  return sealingKey(randomBytes(32))
}

/**
 * Seals text with AES-256-GCM.
 * @param context - the associated data: where the value lives, as `table.column:row id`. The value opens only with the same context, so rows cannot be swapped.
 * @returns `v1.<key id>.<nonce>.<ciphertext and tag>`, parts in base64url
 */
export function seal(key: SealingKey, plaintext: string, context: string): string {
  const nonce = randomBytes(nonceBytes)
  const cipher = createCipheriv('aes-256-gcm', key.bytes, nonce, { authTagLength: tagBytes })
  cipher.setAAD(Buffer.from(`v1.${key.id}:${context}`))
  const sealed = Buffer.concat([cipher.update(plaintext, 'utf8'), cipher.final(), cipher.getAuthTag()])
  return `v1.${key.id}.${nonce.toString('base64url')}.${sealed.toString('base64url')}`
}

/**
 * Opens what {@link seal} made, with whichever of `keys` it names.
 * @throws SealError
 */
export function open(keys: SealingKey | readonly SealingKey[], sealed: string, context: string): string {
  const [version, keyId, nonce, body, more] = sealed.split('.')
  if (version !== 'v1' || !keyId || !nonce || !body || more !== undefined)
    throw new SealError('corrupt', 'not a sealed value')
  const key = (Array.isArray(keys) ? keys : [keys]).find((candidate: SealingKey) => candidate.id === keyId)
  if (!key) throw new SealError('unknown-key', `sealed with key ${keyId}, which is not configured here`)
  const bytes = Buffer.from(body, 'base64url')
  try {
    // without a fixed length a tag cut down to four bytes would do, which can be guessed
    const decipher = createDecipheriv('aes-256-gcm', key.bytes, Buffer.from(nonce, 'base64url'), {
      authTagLength: tagBytes,
    })
    decipher.setAAD(Buffer.from(`v1.${keyId}:${context}`))
    decipher.setAuthTag(bytes.subarray(bytes.length - tagBytes))
    return Buffer.concat([decipher.update(bytes.subarray(0, bytes.length - tagBytes)), decipher.final()]).toString(
      'utf8',
    )
  } catch {
    throw new SealError('corrupt', `the value sealed for ${context} was altered or belongs to another row`)
  }
}
