import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'
import { loadConfig, variableNames } from './config.ts'

// .env.example is what operators read; config.ts is what the program reads. This holds the two together.

const root = dirname(dirname(import.meta.dirname))
const read = (path: string) => readFileSync(join(root, path), 'utf8')

const shown = new Map(
  [...read('.env.example').matchAll(/^#?([A-Z][A-Z0-9_]*)=(.*)$/gm)].map(match => [match[1]!, match[2]!]),
)

/** Variables that only the tools around the control plane read, each with what reads it. */
const notForTheControlPlane: Record<string, string> = {
  SDP_SECRETS_DIR: 'compose/compose.yaml',
  SDP_NODE_IMAGE: 'compose/compose.yaml',
  SDP_POSTGRES_IMAGE: 'compose/compose.yaml',
  SDP_IMAGE_TAG: 'compose/compose.yaml',
  SDP_PREBUILT: 'compose/compose.yaml',
  SDP_CONTROL_PLANE_USER: 'compose/compose.yaml',
  SDP_SOCKET_PROXY_USER: 'compose/socket-proxy.yaml',
  SDP_POSTGRES_VOLUME: 'compose/compose.yaml',
  SDP_POSTGRES_MAX_CONNECTIONS: 'compose/compose.yaml',
  DOCKER_SOCKET: 'compose/compose.yaml',
}

test('.env.example explains every variable the control plane reads', () => {
  expect(variableNames.filter(name => !shown.has(name))).toEqual([])
})

test('.env.example shows no variable that nothing reads', () => {
  const unknown = [...shown.keys()].filter(name => !variableNames.includes(name) && !(name in notForTheControlPlane))
  expect(unknown).toEqual([])
  for (const [name, reader] of Object.entries(notForTheControlPlane)) {
    expect(shown.has(name), `${name} is no longer in .env.example`).toBe(true)
    expect(read(reader), `${reader} no longer reads ${name}`).toContain(`\${${name}`)
  }
})

test('the values in .env.example are the defaults', () => {
  const secrets = {
    SDP_ADMIN_TOKEN: 'admin-token-Zq81-Lm40-Xw73-Rk26-Vb95',
    SDP_MASTER_KEY: '3q2+7wABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhs=',
    SDP_DB_PASSWORD: 'database-password-Hj58',
  }
  const values = Object.fromEntries([...shown].filter(([name]) => variableNames.includes(name)))
  // unset, the Docker client looks for the socket itself; the line tells where
  expect(values.SDP_DOCKER_SOCKET).toBe('unix:///var/run/docker.sock')
  delete values.SDP_DOCKER_SOCKET
  expect(loadConfig({ ...values, ...secrets })).toEqual(loadConfig(secrets))
})

test('no secret stands in .env.example', () => {
  for (const name of [
    'SDP_ADMIN_TOKEN',
    'SDP_MASTER_KEY',
    'SDP_MASTER_KEYS_OLD',
    'SDP_DB_PASSWORD',
    'SDP_DB_CONTROL_PLANE_PASSWORD',
    'SDP_CLIENT_SECRET',
    'SDP_CONSENT_CLIENT_SECRET',
  ])
    expect(shown.get(name)).toBe('')
})

test('compose gives the control plane only variables that it reads', () => {
  const given = [...read('compose/compose.yaml').matchAll(/^ {6}(SDP_[A-Z0-9_]+):/gm)].map(match => match[1]!)
  const buildArguments = ['SDP_PREBUILT']
  expect(given.length).toBeGreaterThan(20)
  expect(given.filter(name => !variableNames.includes(name) && !buildArguments.includes(name))).toEqual([])
})
