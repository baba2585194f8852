import { execFile } from 'node:child_process'
import { createDecipheriv, createHash, createPrivateKey, randomUUID, sign } from 'node:crypto'
import { connect as connectTcp } from 'node:net'
import { inject } from 'vitest'
import type { Stack } from './stack.ts'

// What an attacker has: a socket, a shell on the host, copies of rows and keys. Nothing of the product is used.

/** Sends bytes as they are and returns what comes back until the other side ends it, `until` fits, or time is over. */
export function speak(
  url: string,
  bytes: string | Buffer,
  { withinMs = 4_000, until }: { withinMs?: number; until?: RegExp } = {},
): Promise<string> {
  const { hostname, port } = new URL(url)
  return new Promise(done => {
    let heard = ''
    const socket = connectTcp(Number(port), hostname, () => socket.write(bytes))
    const end = () => {
      clearTimeout(timer)
      socket.destroy()
      done(heard)
    }
    const timer = setTimeout(end, withinMs)
    socket.setEncoding('latin1').on('data', chunk => {
      heard += chunk
      if (until?.test(heard)) end()
    })
    socket.on('error', end).on('close', end)
  })
}

/** The status of each answer in a conversation, in order. */
export function statusesIn(heard: string): number[] {
  return [...heard.matchAll(/HTTP\/1\.1 (\d{3}) /g)].map(match => Number(match[1]))
}

export type ProgramResult = { code: number | null; output: string }

/** Runs the docker command against the engine of the tests. */
export function docker(args: string[], timeoutMs = 60_000): Promise<ProgramResult> {
  return new Promise(done =>
    execFile(
      'docker',
      args,
      {
        env: { PATH: process.env.PATH, DOCKER_HOST: inject('engine').host },
        timeout: timeoutMs,
        maxBuffer: 64 * 1024 * 1024,
      },
      (error, stdout, stderr) =>
        done({ code: error ? Number((error as { code?: unknown }).code ?? -1) : 0, output: stdout + stderr }),
    ),
  )
}

/** Runs JavaScript inside a running instance, as whoever took it over would; returns what it gave to `tell`. */
// biome-ignore lint/suspicious/noExplicitAny: read by field
export async function runInside(containerId: string, script: string): Promise<any> {
  const { code, output } = await docker([
    'exec',
    containerId,
    'node',
    '--input-type=module',
    '-e',
    `const tell = value => process.stdout.write(JSON.stringify(value));\n${script}`,
  ])
  try {
    return JSON.parse(output)
  } catch {
    throw new Error(`inside the container, exit code ${code}: ${output.slice(-2_000)}`)
  }
}

/** Opens a sealed value whose key was stolen: `v1.<key id>.<nonce>.<ciphertext and tag>`, AES-256-GCM. */
export function unseal(keyBase64: string, sealed: string, context: string): string {
  const [version, keyId, nonce, body] = sealed.split('.') as [string, string, string, string]
  const key = Buffer.from(keyBase64, 'base64')
  if (createHash('sha256').update(key).digest('hex').slice(0, 12) !== keyId) throw new Error('another key')
  const bytes = Buffer.from(body, 'base64url')
  const decipher = createDecipheriv('aes-256-gcm', key, Buffer.from(nonce, 'base64url'))
  decipher.setAAD(Buffer.from(`${version}.${keyId}:${context}`)).setAuthTag(bytes.subarray(-16))
  return Buffer.concat([decipher.update(bytes.subarray(0, -16)), decipher.final()]).toString('utf8')
}

/** What belongs to one user and must never be seen outside: opened with the master key, which only this test has. */
export async function secretsOf(stack: Stack, username: string) {
  const [row] = await stack.sql<{ id: string; wrapped_key: string; role_password_sealed: string }>(
    'select u.id, d.wrapped_key, d.role_password_sealed from users u join data_keys d on d.user_id = u.id where username = $1',
    [username],
  )
  const { id, wrapped_key, role_password_sealed } = row!
  const dataKey = unseal(stack.masterKey, wrapped_key, `data_keys.wrapped_key:${id}`)
  return {
    userId: id,
    dataKey,
    role: `sdpmcp_u_${id.replaceAll('-', '')}`,
    rolePassword: unseal(dataKey, role_password_sealed, `data_keys.role_password_sealed:${id}`),
  }
}

/** The control plane's signing key, as if it were stolen: so that every other check of a statement can be seen alone. */
export async function signingKeyOf(stack: Stack) {
  const [row] = await stack.sql<{ kid: string; private_sealed: string; public_jwk: Record<string, string> }>(
    'select kid, private_sealed, public_jwk from signing_keys order by created_at desc limit 1',
  )
  const { kid, private_sealed, public_jwk: publicJwk } = row!
  const jwk = JSON.parse(unseal(stack.masterKey, private_sealed, `signing_keys.private_sealed:${kid}`))
  return { kid, publicJwk, privateKey: createPrivateKey({ key: jwk, format: 'jwk' }) }
}

const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')

/** A JWT with any header and claims; `signature` gets the signing input. */
export function jwt(header: unknown, claims: unknown, signature: (input: Buffer) => Buffer): string {
  const input = `${part(header)}.${part(claims)}`
  return `${input}.${signature(Buffer.from(input)).toString('base64url')}`
}

export const ed25519 = (key: Parameters<typeof sign>[2]) => (input: Buffer) => sign(null, input, key)

/** One JSON-RPC request by plain HTTP; without a body of its own, `tools/list` under an id that no other call has. */
export function post(
  url: string,
  headers: Record<string, string>,
  body: unknown = { ...listTools, id: randomUUID() },
): Promise<Response> {
  return fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept: 'application/json, text/event-stream', ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
  })
}

export const listTools = { jsonrpc: '2.0', id: 1, method: 'tools/list' }
export const initialize = {
  jsonrpc: '2.0',
  id: 0,
  method: 'initialize',
  params: { protocolVersion: '2025-06-18', capabilities: {}, clientInfo: { name: 'attacker', version: '1' } },
}

export const bearer = (key: string) => ({ authorization: `Bearer ${key}` })
