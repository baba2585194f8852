import { inspect } from 'node:util'
import { expect, test } from 'vitest'
import { generateSealingKey, open, SealError, seal, sealingKey } from './seal.ts'

const key = generateSealingKey()
const context = 'oauth_tokens.refresh_token_sealed:alice'
const kindOf = (opening: () => string) => {
  try {
    return opening()
  } catch (error) {
    return error instanceof SealError ? error.kind : error
  }
}

test('what is sealed opens with its key and context only', () => {
  for (const text of ['', 'a', '1000.token', 'ä€𝄞'.repeat(1000)]) {
    const sealed = seal(key, text, context)
    expect(sealed).toMatch(/^v1\.[0-9a-f]{12}\.[\w-]{16}\.[\w-]+$/)
    expect(open(key, sealed, context)).toBe(text)
    expect(open([generateSealingKey(), key], sealed, context)).toBe(text)
    expect(kindOf(() => open(key, sealed, context.replace('alice', 'bob')))).toBe('corrupt')
    expect(kindOf(() => open(generateSealingKey(), sealed, context))).toBe('unknown-key')
  }
})

test('the same text never looks the same', () => {
  expect(seal(key, 'a', context)).not.toBe(seal(key, 'a', context))
})

test('a value that was altered anywhere, shortened or lengthened does not open', () => {
  const sealed = seal(key, 'secret', context)
  for (let at = 0; at < sealed.length; at++) {
    const altered = sealed.slice(0, at) + (sealed[at] === 'A' ? 'B' : 'A') + sealed.slice(at + 1)
    const result = kindOf(() => open(key, altered, context))
    // the last digit of base64url may hold bits that mean nothing
    if (at < sealed.length - 1) expect(result).toMatch(/corrupt|unknown-key/)
  }
  for (const wrong of [
    sealed.slice(0, -4),
    `${sealed}AAAA`,
    `${sealed}.x`,
    '',
    'v1',
    'v1...',
    'plain text',
    sealed.replace('v1', 'v2'),
  ])
    expect(kindOf(() => open(key, wrong, context))).toBe('corrupt')
})

test('a tag cut down to where it could be guessed does not open', () => {
  const [version, keyId, nonce, body] = seal(key, '', context).split('.') as [string, string, string, string]
  const tag = Buffer.from(body, 'base64url')
  for (let length = 1; length < 16; length++) {
    const short = [version, keyId, nonce, tag.subarray(0, length).toString('base64url')].join('.')
    expect(kindOf(() => open(key, short, context))).toBe('corrupt')
  }
})

test('a key never prints its bytes', () => {
  const bytes = key.bytes
  for (const text of [inspect(key), JSON.stringify({ key }), String(key), inspect({ deep: [key] }, { depth: 9 })]) {
    expect(text).not.toContain(bytes.toString('base64'))
    expect(text).not.toContain(bytes.toString('hex'))
    expect(text).not.toMatch(/Buffer/)
  }
})

test('a key is 32 bytes, raw or in base64, and is known by its fingerprint', () => {
  expect(sealingKey(key.bytes.toString('base64')).id).toBe(key.id)
  expect(sealingKey(`${key.bytes.toString('base64url')}\n`).id).toBe(key.id)
  for (const wrong of ['', 'short', key.bytes.toString('hex'), Buffer.alloc(31)])
    expect(() => sealingKey(wrong)).toThrow(RangeError)
})
