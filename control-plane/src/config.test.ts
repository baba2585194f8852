import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { inspect } from 'node:util'
import { afterAll, expect, test } from 'vitest'
import { ConfigError, loadConfig, Secret } from './config.ts'

const secrets = {
  SDP_ADMIN_TOKEN: 'admin-token-Zq81-Lm40-Xw73-Rk26-Vb95',
  SDP_MASTER_KEY: '3q2+7wABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhs=',
  SDP_DB_PASSWORD: 'database-password-Hj58',
}
const allSecrets = { ...secrets, SDP_CLIENT_ID: '1000.CLIENT', SDP_CLIENT_SECRET: 'client-secret-Tn62' }

const folder = mkdtempSync(join(tmpdir(), 'sdp-mcp-config-'))
afterAll(() => rmSync(folder, { recursive: true }))
const file = (name: string, text: string) => {
  writeFileSync(join(folder, name), text)
  return join(folder, name)
}

function problems(environment: Record<string, string | undefined>): readonly string[] {
  try {
    loadConfig(environment)
  } catch (error) {
    if (error instanceof ConfigError) return error.problems
    throw error
  }
  return []
}

test('the three secrets are all that must be given', () => {
  const config = loadConfig(secrets)
  expect(config).toMatchObject({
    http: { host: '0.0.0.0', port: 3456 },
    admin: { host: '127.0.0.1', port: 3457 },
    publicUrl: 'http://localhost:3456',
    database: { host: '127.0.0.1', port: 5433, database: 'sdp_mcp', user: 'sdpmcpservice' },
    runtime: 'docker',
    installation: 'main',
    allowInsecureUpstream: false,
    sdpDefaults: {
      dataCenter: 'US',
      portal: null,
      clientId: null,
      clientSecret: null,
      baseUrl: 'https://sdpondemand.manageengine.com',
      accountsUrl: 'https://accounts.zoho.com',
    },
  })
  expect(config.admin.token.reveal()).toBe(secrets.SDP_ADMIN_TOKEN)
  expect(config.database.password.reveal()).toBe(secrets.SDP_DB_PASSWORD)
  expect(config.masterKey.bytes.toString('base64')).toBe(secrets.SDP_MASTER_KEY)
})

test('every missing secret is named at once, each with the command that makes one', () => {
  expect(problems({})).toEqual([
    'SDP_ADMIN_TOKEN (or SDP_ADMIN_TOKEN_FILE) is missing. Make one with: openssl rand -base64 33',
    'SDP_DB_PASSWORD (or SDP_DB_PASSWORD_FILE) is missing. Make one with: openssl rand -hex 24',
    'SDP_MASTER_KEY (or SDP_MASTER_KEY_FILE) is missing. Make one with: openssl rand -base64 32',
  ])
})

test('every problem is told in one go, with the name of its variable', () => {
  const told = problems({
    SDP_HTTP_PORT: 'eighty',
    SDP_ADMIN_PORT: '70000',
    SDP_PUBLIC_URL: 'mcp.example.com',
    SDP_DATA_CENTER: 'MARS',
    SDP_RUNTIME: 'podman',
    SDP_INSTANCE_PORT_RANGE: '43000-42000',
    SDP_INSTANCE_MEMORY_MB: '12',
    SDP_INSTANCE_CPUS: '0',
    SDP_INSTALLATION: 'Main Site',
    SDP_LOG_LEVEL: 'loud',
    SDP_ALLOW_INSECURE_UPSTREAM: 'yes',
    SDP_ADMIN_TOKEN: 'short',
  })
  for (const name of [
    'SDP_HTTP_PORT',
    'SDP_ADMIN_PORT',
    'SDP_PUBLIC_URL',
    'SDP_DATA_CENTER',
    'SDP_RUNTIME',
    'SDP_INSTANCE_PORT_RANGE',
    'SDP_INSTANCE_MEMORY_MB',
    'SDP_INSTANCE_CPUS',
    'SDP_INSTALLATION',
    'SDP_LOG_LEVEL',
    'SDP_ALLOW_INSECURE_UPSTREAM',
    'SDP_ADMIN_TOKEN',
    'SDP_MASTER_KEY',
    'SDP_DB_PASSWORD',
  ])
    expect(
      told.filter(line => line.startsWith(name)),
      name,
    ).toHaveLength(1)
  expect(new ConfigError([...told]).message).toContain(`the configuration has ${told.length} problems:\n  - `)
})

test.each([
  ['SDP_HTTP_PORT', '3456.5', 'SDP_HTTP_PORT must be a port number'],
  ['SDP_HTTP_PORT', '0', 'SDP_HTTP_PORT must be a port number'],
  ['SDP_WORKERS', '0', 'SDP_WORKERS must be a number from 1 to 16, or auto'],
  ['SDP_WORKERS', '17', 'SDP_WORKERS must be a number from 1 to 16, or auto'],
  ['SDP_INSTANCE_PIDS', '20.5', 'SDP_INSTANCE_PIDS must be a whole number'],
  ['SDP_INSTANCE_PORT_RANGE', '42000', 'SDP_INSTANCE_PORT_RANGE must look like 42000-42999'],
  ['SDP_INSTANCE_NETWORK_POOL', '10.213.0.0', 'SDP_INSTANCE_NETWORK_POOL must be a network such as 10.213.0.0/16'],
  ['SDP_LOG_LEVEL', 'loud', 'SDP_LOG_LEVEL must be one of trace, debug, info, warn, error, fatal, silent'],
  ['SDP_BASE_URL', 'ftp://files.example.com', 'SDP_BASE_URL must be a URL such as https://helpdesk.example.com'],
  [
    'SDP_BASE_URL',
    'https://bob:word@helpdesk.example.com',
    'SDP_BASE_URL must not contain a user name or password. Give only the address.',
  ],
  [
    'SDP_PUBLIC_URL',
    'https://mcp.example.com/prefix',
    'SDP_PUBLIC_URL must be an address without a path, such as https://mcp.example.com: instances announce paths below /.',
  ],
  [
    'SDP_BASE_URL',
    'HTTP://helpdesk.example.com',
    'SDP_BASE_URL must be https. For a simulator on this machine set SDP_ALLOW_INSECURE_UPSTREAM=true.',
  ],
  [
    'SDP_INSTANCE_REACH',
    'network',
    'SDP_INSTANCE_REACH=network needs SDP_CONTROL_PLANE_CONTAINER, the name of the control plane’s own container.',
  ],
  ['SDP_ADMIN_PORT', '3456', 'SDP_HTTP_PORT and SDP_ADMIN_PORT are the same. Choose two ports.'],
  ['SDP_CLIENT_SECRET', 'alone-Tn62', 'SDP_CLIENT_SECRET is set without SDP_CLIENT_ID, which it belongs to. Set both.'],
])('%s=%s is refused: %s', (name, value, told) => {
  expect(problems({ ...secrets, [name]: value })).toEqual([told])
})

test('there is one worker unless more are asked for; auto is one for each core, where the runtime allows for it', () => {
  expect(loadConfig(secrets).workers).toBe(1)
  expect(loadConfig({ ...secrets, SDP_WORKERS: '4' }).workers).toBe(4)
  expect(loadConfig({ ...secrets, SDP_WORKERS: 'auto' }).workers).toBe(Math.min(16, availableParallelism()))
  const evaluation = { ...secrets, SDP_RUNTIME: 'process' }
  expect(loadConfig({ ...evaluation, SDP_WORKERS: 'auto' }).workers).toBe(1)
  expect(problems({ ...evaluation, SDP_WORKERS: '2' })).toEqual([
    'SDP_WORKERS must be 1 with SDP_RUNTIME=process, whose instances are children of a single process. Leave it out, or use Docker.',
  ])
})

test('a weak secret is named with the reason, and not shown', () => {
  const weak = {
    SDP_ADMIN_TOKEN: 'thirty-one-characters-are-to-few'.slice(1),
    SDP_DB_PASSWORD: 'abababababababababab',
    SDP_MASTER_KEY: Buffer.alloc(32, 7).toString('base64'),
  }
  const told = problems(weak)
  expect(told).toEqual([
    'SDP_ADMIN_TOKEN is too weak: it has 31 characters, at least 32 are needed. Make a new one with: openssl rand -base64 33',
    'SDP_DB_PASSWORD is too weak: it repeats a few characters. Make a new one with: openssl rand -hex 24',
    'SDP_MASTER_KEY is too weak: it is not random. Make a new one with: openssl rand -base64 32',
  ])
  for (const value of Object.values(weak)) expect(told.join()).not.toContain(value)
  expect(problems({ ...secrets, SDP_MASTER_KEY: 'correct horse battery staple' })[0]).toContain('it is not base64')
  expect(problems({ ...secrets, SDP_MASTER_KEY: Buffer.alloc(16).toString('hex') })[0]).toContain(
    'exactly 32 are needed',
  )
})

test('each secret may stand in a file, with or without a newline at its end', () => {
  const config = loadConfig({
    SDP_ADMIN_TOKEN_FILE: file('admin', `${secrets.SDP_ADMIN_TOKEN}\n`),
    SDP_MASTER_KEY_FILE: file('master', secrets.SDP_MASTER_KEY),
    SDP_DB_PASSWORD_FILE: file('db', `${secrets.SDP_DB_PASSWORD}\r\n`),
    SDP_CLIENT_ID: '1000.CLIENT',
    SDP_CLIENT_SECRET_FILE: file('client', 'from-a-file'),
  })
  expect(config.admin.token.reveal()).toBe(secrets.SDP_ADMIN_TOKEN)
  expect(config.database.password.reveal()).toBe(secrets.SDP_DB_PASSWORD)
  expect(config.sdpDefaults.clientSecret?.reveal()).toBe('from-a-file')
})

test('a secret’s file that is a directory, empty, or missing is told as that, with its path', () => {
  const directory = join(folder, 'directory')
  mkdirSync(directory)
  const empty = file('empty', ' \n')
  const missing = join(folder, 'missing')
  expect(
    problems({ SDP_ADMIN_TOKEN_FILE: directory, SDP_DB_PASSWORD_FILE: empty, SDP_MASTER_KEY_FILE: missing }),
  ).toEqual([
    `SDP_ADMIN_TOKEN_FILE: ${directory} is a directory (Docker makes one when the file is missing).`,
    `SDP_DB_PASSWORD_FILE: the file ${empty} is empty.`,
    `SDP_MASTER_KEY_FILE: ${missing} cannot be read (ENOENT).`,
  ])
})

test('a weak secret in a file is weak all the same', () => {
  expect(problems({ ...secrets, SDP_ADMIN_TOKEN: undefined, SDP_ADMIN_TOKEN_FILE: file('weak', 'short') })).toEqual([
    'SDP_ADMIN_TOKEN is too weak: it has 5 characters, at least 32 are needed. Make a new one with: openssl rand -base64 33',
  ])
})

test('a secret that is given twice is refused rather than guessed', () => {
  expect(problems({ ...secrets, SDP_MASTER_KEY_FILE: file('second', secrets.SDP_MASTER_KEY) })).toEqual([
    'SDP_MASTER_KEY and SDP_MASTER_KEY_FILE are both set. Keep one of them.',
  ])
})

test('an empty variable counts as not set, as in compose files', () => {
  const config = loadConfig({
    ...secrets,
    SDP_HTTP_PORT: '',
    SDP_BASE_URL: ' ',
    SDP_ADMIN_TOKEN_FILE: '',
    SDP_RUNTIME: '',
  })
  expect(config.http.port).toBe(3456)
  expect(config.runtime).toBe('docker')
  expect(problems({ ...secrets, SDP_ADMIN_TOKEN: '  ' })[0]).toContain(
    'SDP_ADMIN_TOKEN (or SDP_ADMIN_TOKEN_FILE) is missing',
  )
})

test('a web address is kept as an origin, however it was typed', () => {
  const config = loadConfig({
    ...secrets,
    SDP_BASE_URL: 'https://Helpdesk.Example.com/app/itdesk/',
    SDP_ACCOUNTS_URL: 'https://accounts.zoho.eu:443//',
    SDP_PUBLIC_URL: 'https://mcp.example.com/',
  })
  expect(config.sdpDefaults).toMatchObject({
    baseUrl: 'https://helpdesk.example.com',
    baseUrlGiven: true,
    accountsUrl: 'https://accounts.zoho.eu',
    accountsUrlGiven: true,
  })
  expect(config.publicUrl).toBe('https://mcp.example.com')
})

test('plain http upstreams are taken only when that was asked for', () => {
  const simulator = { ...secrets, SDP_BASE_URL: 'http://127.0.0.1:8080', SDP_ACCOUNTS_URL: 'http://127.0.0.1:8080' }
  expect(problems(simulator)).toHaveLength(2)
  expect(loadConfig({ ...simulator, SDP_ALLOW_INSECURE_UPSTREAM: 'true' }).sdpDefaults.baseUrl).toBe(
    'http://127.0.0.1:8080',
  )
})

test('egress is restricted only where something can stand between instances and the world, and at a port of its own', () => {
  const inContainer = { SDP_INSTANCE_REACH: 'network', SDP_CONTROL_PLANE_CONTAINER: 'plane' }
  expect(problems({ ...secrets, SDP_EGRESS: 'restricted' })).toEqual([
    expect.stringContaining('SDP_INSTANCE_REACH=network'),
  ])
  expect(problems({ ...secrets, SDP_EGRESS: 'restricted', SDP_EGRESS_PORT: '3456', ...inContainer })).toEqual([
    expect.stringContaining('SDP_EGRESS_PORT is the port of another listener'),
  ])
  const config = loadConfig({
    ...secrets,
    ...inContainer,
    SDP_EGRESS: 'restricted',
    SDP_EGRESS_ALLOWED_HOSTS: 'a.example, *.b.example',
  })
  expect(config.instance.limits.egress).toBe('restricted')
  expect(config.egress).toEqual({ port: 3458, allowedHosts: ['a.example', '*.b.example'] })
})

test('the hosts follow from the data center unless they are given', () => {
  expect(loadConfig({ ...secrets, SDP_DATA_CENTER: 'EU' }).sdpDefaults).toMatchObject({
    baseUrl: 'https://sdpondemand.manageengine.eu',
    accountsUrl: 'https://accounts.zoho.eu',
  })
})

test('lists may have spaces and empty places', () => {
  const { instance } = loadConfig({ ...secrets, SDP_INSTANCE_NETWORK_PEERS: ' postgres, ,proxy,' })
  expect(instance.networkPeers).toEqual(['postgres', 'proxy'])
})

test('printing the configuration in any way shows no secret', () => {
  const config = loadConfig(allSecrets)
  const prints = [
    JSON.stringify(config),
    inspect(config, { depth: 20 }),
    inspect(config, { depth: 20, getters: true }),
    String(config.admin.token),
    `${config.sdpDefaults.clientSecret}`,
    JSON.stringify({ ...config.database }),
    JSON.stringify(Object.entries(config.masterKey)),
  ].join('\n')
  expect(prints).toContain('[redacted]')
  for (const secret of [
    secrets.SDP_ADMIN_TOKEN,
    secrets.SDP_DB_PASSWORD,
    allSecrets.SDP_CLIENT_SECRET,
    secrets.SDP_MASTER_KEY,
    Buffer.from(secrets.SDP_MASTER_KEY, 'base64').toString('hex'),
    'de ad be ef',
  ])
    expect(prints).not.toContain(secret)
})

test('a secret in a template, a log line or an error message prints as [redacted]', () => {
  const secret = new Secret('Wd39')
  expect(
    `${secret} ${JSON.stringify({ secret })} ${inspect([secret])} ${new Error(String(secret)).message}`,
  ).not.toContain('Wd39')
  expect(secret.reveal()).toBe('Wd39')
})

test('the configuration cannot be changed once it is read', () => {
  const config = loadConfig(secrets) as { publicUrl: string; http: { port: number } }
  expect(() => {
    config.publicUrl = 'http://elsewhere'
  }).toThrow(TypeError)
  expect(() => {
    config.http.port = 1
  }).toThrow(TypeError)
})
