import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { isIP } from 'node:net'
import { availableParallelism } from 'node:os'
import { inspect } from 'node:util'
import { dataCenterHosts, dataCenters, plainAddress } from '@sdp-mcp/instance/contract'
import { type SealingKey, sealingKey } from '@sdp-mcp/instance/seal'
import { z } from 'zod'
import { faultPoints } from './fault-points.ts'

/** A value that prints as `[redacted]` wherever it is logged, inspected or serialised. */
export class Secret {
  readonly #value: string
  constructor(value: string) {
    this.#value = value
  }
  reveal(): string {
    return this.#value
  }
  toString(): string {
    return '[redacted]'
  }
  toJSON(): string {
    return '[redacted]'
  }
  [inspect.custom](): string {
    return '[redacted]'
  }
}

/** Every problem of the configuration at once, a line each, fit to print. */
export class ConfigError extends Error {
  readonly problems: readonly string[]
  constructor(problems: string[]) {
    super(
      `the configuration has ${problems.length} problem${problems.length === 1 ? '' : 's'}:\n${problems.map(line => `  - ${line}`).join('\n')}`,
    )
    this.name = 'ConfigError'
    this.problems = problems
  }
}

const whole = (what: string) => z.coerce.number(`must be ${what}`).int(`must be ${what}`)
const port = whole('a port number').min(1, 'must be a port number').max(65535, 'must be a port number')
const flag = z.enum(['true', 'false'], 'must be true or false').transform(value => value === 'true')
const address = z
  .url({ protocol: /^https?$/, error: 'must be a URL such as https://helpdesk.example.com' })
  .transform(value => new URL(value))
  .refine(url => !url.username && !url.password, 'must not contain a user name or password. Give only the address.')
// people paste what their browser shows; only the site counts
const origin = address.transform(url => url.origin)
const originWithoutPath = address
  .refine(
    url => url.href === `${url.origin}/`,
    'must be an address without a path, such as https://mcp.example.com: instances announce paths below /.',
  )
  .transform(url => url.origin)
const oneOf = <const T extends readonly [string, ...string[]]>(values: T) =>
  z.enum(values, `must be one of ${values.join(', ')}`)
const unitMs: Record<string, number> = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }
/** Milliseconds of `90s`, `30m`, `8h` or `2d`; null for `never`. */
const duration = z
  .string()
  .regex(/^(never|[1-9]\d{0,5}[smhd])$/, 'must be a number with its unit, such as 90s, 30m, 8h or 2d, or never')
  .transform(value => (value === 'never' ? null : Number(value.slice(0, -1)) * unitMs[value.slice(-1)]!))
const list = z.string().transform(value =>
  value
    .split(',')
    .map(part => part.trim())
    .filter(Boolean),
)

const hostNames = list
  .transform(names => names.map(name => name.toLowerCase()))
  .refine(
    names => names.every(name => /^(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?$/.test(name)),
    'must be host names without port or path, separated by commas, such as mcp.example.com,*.corp.example',
  )
const networks = list
  .transform(texts => texts.map(text => (text.includes('/') ? text : `${text}/${isIP(text) === 6 ? 128 : 32}`)))
  .refine(
    texts =>
      texts.every(text => {
        const [address = '', bits = ''] = text.split('/')
        return (
          plainAddress(address) === address.toLowerCase() &&
          /^\d{1,3}$/.test(bits) &&
          Number(bits) <= (isIP(address) === 6 ? 128 : 32)
        )
      }),
    'must be addresses or networks, separated by commas, such as 10.1.0.0/16,2001:db8::/32',
  )
const addressIsLoopback = (text: string) => /^(127\.|::1$)/.test(plainAddress(text) ?? '')
const count = whole('a whole number').min(0, 'must be 0 or more')

// Name in the environment -> how it is read. A secret may also be given as NAME_FILE.
const variables = {
  SDP_HTTP_HOST: z.string().default('0.0.0.0'),
  SDP_HTTP_PORT: port.default(3456),
  SDP_ADMIN_HOST: z.string().default('127.0.0.1'),
  SDP_ADMIN_PORT: port.default(3457),
  SDP_WORKERS: z
    .string()
    .regex(/^(auto|[1-9]|1[0-6])$/, 'must be a number from 1 to 16, or auto')
    .default('1'),
  SDP_PUBLIC_URL: originWithoutPath.optional(),
  SDP_HTTP_ALLOWED_NETWORKS: networks.default([]),
  SDP_ADMIN_ALLOWED_NETWORKS: networks.default([]),
  SDP_TRUSTED_PROXIES: networks.default([]),
  SDP_ALLOWED_HOSTS: hostNames.default([]),
  SDP_ALLOWED_ORIGINS: list
    .refine(
      origins =>
        origins.every(
          text =>
            URL.canParse(text) &&
            /^https?:$/.test(new URL(text).protocol) &&
            new URL(text).origin === text.toLowerCase(),
        ),
      'must be origins, separated by commas, such as https://inspector.example.com',
    )
    .transform(origins => origins.map(text => text.toLowerCase()))
    .default([]),
  SDP_USER_REQUESTS_PER_SECOND: count.default(100),
  SDP_USER_BURST: whole('a whole number').min(1, 'must be at least 1').default(200),
  SDP_USER_CONCURRENT_REQUESTS: count.default(200),
  SDP_USER_SESSIONS: whole('a whole number')
    .min(1, 'must be at least 1')
    .max(1000, 'must be at most 1000')
    .default(100),
  SDP_DYNAMIC_CREDENTIALS: oneOf(['off', 'known', 'enroll']).default('off'),
  SDP_DYNAMIC_ENROLL_PER_HOUR: whole('a whole number').min(1, 'must be at least 1').default(20),
  SDP_ADMIN_OIDC_ISSUER: address
    .refine(
      url => url.protocol === 'https:' || url.hostname === 'localhost' || addressIsLoopback(url.hostname),
      'must be https, as the identity provider shows it in its discovery document',
    )
    .optional(),
  SDP_ADMIN_OIDC_AUDIENCE: z.string().optional(),
  SDP_ADMIN_OIDC_ROLE_CLAIM: z.string().default('roles'),
  SDP_ADMIN_OIDC_ADMIN_ROLE: z.string().default('admin'),
  SDP_ADMIN_OIDC_VIEWER_ROLE: z.string().default('viewer'),
  SDP_DB_HOST: z.string().default('127.0.0.1'),
  SDP_DB_PORT: port.default(5433),
  SDP_DB_NAME: z.string().default('sdp_mcp'),
  SDP_DB_USER: z.string().default('sdpmcpservice'),
  SDP_DB_CONTROL_PLANE_USER: z
    .string()
    .regex(/^[a-z][a-z0-9_]{0,62}$/, 'must be lower-case letters, digits and underscores')
    .optional(),
  SDP_BASE_URL: origin.optional(),
  SDP_INSTANCE_NAME: z.string().optional(),
  SDP_DATA_CENTER: oneOf(dataCenters).default('US'),
  SDP_ACCOUNTS_URL: origin.optional(),
  SDP_CLIENT_ID: z.string().optional(),
  SDP_CONSENT_CLIENT_ID: z.string().optional(),
  SDP_ALLOW_INSECURE_UPSTREAM: flag.default(false),
  SDP_ALLOWED_UPSTREAM_HOSTS: hostNames.default([]),
  SDP_RUNTIME: z.enum(['docker', 'process'], 'must be docker or process').default('docker'),
  SDP_DOCKER_SOCKET: z.string().optional(),
  SDP_INSTANCE_IMAGE: z.string().default('sdp-mcp/instance:dev'),
  SDP_INSTANCE_ENTRY: z.string().optional(),
  SDP_INSTALLATION: z
    .string()
    .regex(/^[a-z0-9][a-z0-9-]{0,30}$/, 'must be lower-case letters, digits and hyphens, at most 31')
    .default('main'),
  SDP_INSTANCE_PORT_RANGE: z
    .string()
    .regex(/^\d+-\d+$/, 'must look like 42000-42999')
    .transform(value => value.split('-').map(Number) as [number, number])
    .refine(
      ([low, high]) => low >= 1024 && high <= 65535 && low <= high,
      'must be two ports from 1024 to 65535, the lower first',
    )
    .default([42000, 42999]),
  SDP_INSTANCE_REACH: z.enum(['loopback', 'network'], 'must be loopback or network').default('loopback'),
  SDP_INSTANCE_NETWORK_POOL: z
    .string()
    .regex(/^\d+\.\d+\.\d+\.\d+\/\d+$/, 'must be a network such as 10.213.0.0/16')
    .default('10.213.0.0/16'),
  SDP_INSTANCE_NETWORK_PEERS: list.default([]),
  SDP_INSTANCE_EXTRA_HOSTS: list.default([]),
  SDP_EGRESS: z.enum(['open', 'restricted'], 'must be open or restricted').default('open'),
  SDP_EGRESS_PORT: port.default(3458),
  SDP_EGRESS_ALLOWED_HOSTS: hostNames.default([]),
  SDP_CONTROL_PLANE_CONTAINER: z.string().optional(),
  SDP_INSTANCE_DB_HOST: z.string().optional(),
  SDP_INSTANCE_DB_PORT: port.optional(),
  SDP_INSTANCE_MEMORY_MB: whole('a whole number').min(64, 'must be at least 64').default(256),
  SDP_INSTANCE_CPUS: z.coerce.number('must be a number').positive('must be more than 0').default(1),
  SDP_INSTANCE_PIDS: whole('a whole number').min(16, 'must be at least 16').default(128),
  SDP_INSTANCE_MEMORY_REQUEST_MB: whole('a whole number').min(16, 'must be at least 16').default(96),
  SDP_HOST_MEMORY_RESERVE_MB: whole('a whole number').min(0, 'must not be negative').default(1024),
  SDP_MAX_INSTANCES: whole('a whole number').min(1, 'must be at least 1').optional(),
  SDP_IDLE_STOP_AFTER: duration.default(30 * 60_000),
  SDP_IDLE_STREAM_STOP_AFTER: duration.default(8 * 3_600_000),
  SDP_FAULT_POINT: oneOf(faultPoints).optional(),
  SDP_AUDIT_RETENTION_DAYS: whole('a whole number of days')
    .refine(days => days === 0 || days >= 30, 'must be at least 30, or 0 to keep the audit for ever')
    .default(365),
  SDP_LOG_LEVEL: oneOf(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent']).default('info'),
} as const

const secrets = [
  'SDP_ADMIN_TOKEN',
  'SDP_MASTER_KEY',
  'SDP_MASTER_KEYS_OLD',
  'SDP_DB_PASSWORD',
  'SDP_DB_CONTROL_PLANE_PASSWORD',
  'SDP_CLIENT_SECRET',
  'SDP_CONSENT_CLIENT_SECRET',
] as const
type SecretName = (typeof secrets)[number]

/** All names the control plane reads; `.env.example` lists the same ones (a test compares). */
export const variableNames: readonly string[] = [
  ...Object.keys(variables),
  ...secrets.flatMap(name => [name, `${name}_FILE`]),
]

export type Config = ReturnType<typeof loadConfig>

/**
 * Reads the environment into a frozen value.
 * @throws ConfigError that lists every problem, with what to do, and never a secret's value
 */
export function loadConfig(environment: Record<string, string | undefined>) {
  const problems: string[] = []
  // an empty variable is how compose files say "not set"
  const given = Object.fromEntries(
    Object.entries(environment).filter(([, value]) => value !== undefined && value.trim() !== ''),
  )

  const parsed = z.object(variables).safeParse(given)
  if (!parsed.success)
    for (const issue of parsed.error.issues) problems.push(`${issue.path.join('.')} ${issue.message}`)

  const secret = (name: SecretName): string | undefined => {
    const file = given[`${name}_FILE`]
    if (file === undefined) return given[name]?.trim()
    if (given[name] !== undefined) {
      problems.push(`${name} and ${name}_FILE are both set. Keep one of them.`)
      return undefined
    }
    try {
      const value = readFileSync(file, 'utf8').trim()
      // a list may be empty
      if (value === '' && name !== 'SDP_MASTER_KEYS_OLD') problems.push(`${name}_FILE: the file ${file} is empty.`)
      return value || undefined
    } catch (error) {
      const why =
        (error as NodeJS.ErrnoException).code === 'EISDIR'
          ? 'is a directory (Docker makes one when the file is missing)'
          : `cannot be read (${(error as NodeJS.ErrnoException).code})`
      problems.push(`${name}_FILE: ${file} ${why}.`)
      return undefined
    }
  }
  const required = (name: SecretName, weak: (value: string) => string | undefined, make: string): string => {
    const before = problems.length
    const value = secret(name)
    if (value === undefined) {
      if (problems.length === before) problems.push(`${name} (or ${name}_FILE) is missing. Make one with: ${make}`)
      return ''
    }
    const why = weak(value)
    if (why) problems.push(`${name} is too weak: ${why}. Make a new one with: ${make}`)
    return value
  }
  const shorterThan = (length: number) => (value: string) =>
    value.length < length
      ? `it has ${value.length} characters, at least ${length} are needed`
      : new Set(value).size < 8
        ? 'it repeats a few characters'
        : undefined

  const adminToken = required('SDP_ADMIN_TOKEN', shorterThan(32), 'openssl rand -base64 33')
  const dbPassword = required('SDP_DB_PASSWORD', shorterThan(16), 'openssl rand -hex 24')
  const masterKeyText = required('SDP_MASTER_KEY', weakMasterKey, 'openssl rand -base64 32')
  const oldKeyTexts = (secret('SDP_MASTER_KEYS_OLD') ?? '').split(/[\s,]+/).filter(Boolean)
  for (const [index, text] of oldKeyTexts.entries()) {
    const why = weakMasterKey(text)
    if (why)
      problems.push(`SDP_MASTER_KEYS_OLD: key ${index + 1} is none: ${why}. Give former values of SDP_MASTER_KEY.`)
  }
  const clientSecret = secret('SDP_CLIENT_SECRET')
  const controlPlanePassword = secret('SDP_DB_CONTROL_PLANE_PASSWORD')
  const consentSecret = secret('SDP_CONSENT_CLIENT_SECRET')

  const value = parsed.data
  if (value) {
    if (clientSecret !== undefined && value.SDP_CLIENT_ID === undefined)
      problems.push('SDP_CLIENT_SECRET is set without SDP_CLIENT_ID, which it belongs to. Set both.')
    if ((value.SDP_CONSENT_CLIENT_ID === undefined) !== (consentSecret === undefined))
      problems.push(
        'SDP_CONSENT_CLIENT_ID and SDP_CONSENT_CLIENT_SECRET (or SDP_CONSENT_CLIENT_SECRET_FILE) belong together. Set both, or neither.',
      )
    const weakPassword = controlPlanePassword === undefined ? undefined : shorterThan(16)(controlPlanePassword)
    if (weakPassword)
      problems.push(
        `SDP_DB_CONTROL_PLANE_PASSWORD is too weak: ${weakPassword}. Make a new one with: openssl rand -hex 24`,
      )
    if (value.SDP_INSTANCE_REACH === 'network' && !value.SDP_CONTROL_PLANE_CONTAINER)
      problems.push(
        'SDP_INSTANCE_REACH=network needs SDP_CONTROL_PLANE_CONTAINER, the name of the control plane’s own container.',
      )
    if (value.SDP_EGRESS === 'restricted') {
      if (value.SDP_RUNTIME !== 'docker' || value.SDP_INSTANCE_REACH !== 'network')
        problems.push(
          'SDP_EGRESS=restricted needs SDP_INSTANCE_REACH=network (as in Compose): on the host itself nothing stands between instances and the world.',
        )
      if ([value.SDP_HTTP_PORT, value.SDP_ADMIN_PORT].includes(value.SDP_EGRESS_PORT))
        problems.push('SDP_EGRESS_PORT is the port of another listener. Choose another one.')
    }
    for (const name of ['SDP_BASE_URL', 'SDP_ACCOUNTS_URL'] as const)
      if (value[name]?.startsWith('http:') && !value.SDP_ALLOW_INSECURE_UPSTREAM)
        problems.push(`${name} must be https. For a simulator on this machine set SDP_ALLOW_INSECURE_UPSTREAM=true.`)
    if ((value.SDP_ADMIN_OIDC_ISSUER === undefined) !== (value.SDP_ADMIN_OIDC_AUDIENCE === undefined))
      problems.push(
        'SDP_ADMIN_OIDC_ISSUER and SDP_ADMIN_OIDC_AUDIENCE belong together: without the audience, tokens made for other programs would open the admin API. Set both.',
      )
    if (value.SDP_RUNTIME === 'process' && !['1', 'auto'].includes(value.SDP_WORKERS))
      problems.push(
        'SDP_WORKERS must be 1 with SDP_RUNTIME=process, whose instances are children of a single process. Leave it out, or use Docker.',
      )
    if (value.SDP_HTTP_PORT === value.SDP_ADMIN_PORT)
      problems.push('SDP_HTTP_PORT and SDP_ADMIN_PORT are the same. Choose two ports.')
  }
  if (problems.length > 0 || !value) throw new ConfigError(problems)

  const hosts = dataCenterHosts[value.SDP_DATA_CENTER]
  return deepFreeze({
    http: { host: value.SDP_HTTP_HOST, port: value.SDP_HTTP_PORT },
    admin: { host: value.SDP_ADMIN_HOST, port: value.SDP_ADMIN_PORT, token: new Secret(adminToken) },
    /** processes that serve, see workers/supervisor.ts */
    workers: workersOf(value.SDP_WORKERS, value.SDP_RUNTIME),
    publicUrl: value.SDP_PUBLIC_URL ?? `http://localhost:${value.SDP_HTTP_PORT}`,
    doors: {
      /** empty: everybody */
      httpNetworks: value.SDP_HTTP_ALLOWED_NETWORKS,
      adminNetworks: value.SDP_ADMIN_ALLOWED_NETWORKS,
      trustedProxies: value.SDP_TRUSTED_PROXIES,
      hosts: value.SDP_ALLOWED_HOSTS,
      origins: value.SDP_ALLOWED_ORIGINS,
    },
    /** for users without limits of their own; 0: no limit */
    userLimits: {
      requestsPerSecond: value.SDP_USER_REQUESTS_PER_SECOND,
      burst: value.SDP_USER_BURST,
      concurrentRequests: value.SDP_USER_CONCURRENT_REQUESTS,
      sessions: value.SDP_USER_SESSIONS,
    },
    dynamicCredentials: { mode: value.SDP_DYNAMIC_CREDENTIALS, enrollPerHour: value.SDP_DYNAMIC_ENROLL_PER_HOUR },
    oidc:
      value.SDP_ADMIN_OIDC_ISSUER === undefined || value.SDP_ADMIN_OIDC_AUDIENCE === undefined
        ? null
        : {
            issuer: (given.SDP_ADMIN_OIDC_ISSUER as string).trim(),
            audience: value.SDP_ADMIN_OIDC_AUDIENCE,
            roleClaim: value.SDP_ADMIN_OIDC_ROLE_CLAIM,
            adminRole: value.SDP_ADMIN_OIDC_ADMIN_ROLE,
            viewerRole: value.SDP_ADMIN_OIDC_VIEWER_ROLE,
          },
    masterKey: sealingKey(masterKeyText) as SealingKey,
    /** open what was sealed with them, and seal nothing */
    oldMasterKeys: oldKeyTexts.map(text => sealingKey(text)),
    database: {
      host: value.SDP_DB_HOST,
      port: value.SDP_DB_PORT,
      database: value.SDP_DB_NAME,
      user: value.SDP_DB_USER,
      password: new Secret(dbPassword),
    },
    /** the role that `--prepare-database` makes; the control plane itself logs in as `database.user` */
    controlPlaneRole:
      value.SDP_DB_CONTROL_PLANE_USER === undefined || controlPlanePassword === undefined
        ? null
        : { name: value.SDP_DB_CONTROL_PLANE_USER, password: new Secret(controlPlanePassword) },
    /** used where a user has no setting of its own */
    sdpDefaults: {
      dataCenter: value.SDP_DATA_CENTER,
      portal: value.SDP_INSTANCE_NAME ?? null,
      baseUrl: value.SDP_BASE_URL ?? hosts.api,
      accountsUrl: value.SDP_ACCOUNTS_URL ?? hosts.accounts,
      clientId: value.SDP_CLIENT_ID ?? null,
      clientSecret: clientSecret === undefined ? null : new Secret(clientSecret),
      /** whether the defaults above were given or follow from the data center */
      baseUrlGiven: value.SDP_BASE_URL !== undefined,
      accountsUrlGiven: value.SDP_ACCOUNTS_URL !== undefined,
    },
    /** Zoho's server-based client of the organisation, for connect links */
    consent:
      value.SDP_CONSENT_CLIENT_ID === undefined || consentSecret === undefined
        ? null
        : { clientId: value.SDP_CONSENT_CLIENT_ID, clientSecret: new Secret(consentSecret) },
    allowInsecureUpstream: value.SDP_ALLOW_INSECURE_UPSTREAM,
    allowedUpstreamHosts: value.SDP_ALLOWED_UPSTREAM_HOSTS,
    runtime: value.SDP_RUNTIME,
    dockerSocket: value.SDP_DOCKER_SOCKET ?? given.DOCKER_HOST,
    installation: value.SDP_INSTALLATION,
    instance: {
      image: value.SDP_INSTANCE_IMAGE,
      /** script of the process runtime */
      entry: value.SDP_INSTANCE_ENTRY,
      portRange: value.SDP_INSTANCE_PORT_RANGE,
      reach: value.SDP_INSTANCE_REACH,
      networkPool: value.SDP_INSTANCE_NETWORK_POOL,
      networkPeers: value.SDP_INSTANCE_NETWORK_PEERS,
      extraHosts: value.SDP_INSTANCE_EXTRA_HOSTS,
      controlPlaneContainer: value.SDP_CONTROL_PLANE_CONTAINER,
      databaseHost: value.SDP_INSTANCE_DB_HOST ?? value.SDP_DB_HOST,
      databasePort: value.SDP_INSTANCE_DB_PORT ?? value.SDP_DB_PORT,
      egress: value.SDP_EGRESS,
      limits: {
        memoryMb: value.SDP_INSTANCE_MEMORY_MB,
        cpus: value.SDP_INSTANCE_CPUS,
        pids: value.SDP_INSTANCE_PIDS,
        egress: value.SDP_EGRESS,
      },
    },
    /** used with `instance.egress` "restricted" only */
    egress: { port: value.SDP_EGRESS_PORT, allowedHosts: value.SDP_EGRESS_ALLOWED_HOSTS },
    capacity: {
      maxInstances: value.SDP_MAX_INSTANCES ?? null,
      requestMb: value.SDP_INSTANCE_MEMORY_REQUEST_MB,
      reserveMb: value.SDP_HOST_MEMORY_RESERVE_MB,
    },
    /** null: never */
    idle: { stopAfterMs: value.SDP_IDLE_STOP_AFTER, streamStopAfterMs: value.SDP_IDLE_STREAM_STOP_AFTER },
    faultPoint: value.SDP_FAULT_POINT,
    /** days; null: for ever */
    auditRetentionDays: value.SDP_AUDIT_RETENTION_DAYS || null,
    logLevel: value.SDP_LOG_LEVEL,
  })
}

function workersOf(wanted: string, runtime: 'docker' | 'process'): number {
  if (wanted !== 'auto') return Number(wanted)
  return runtime === 'process' ? 1 : Math.min(16, availableParallelism())
}

export type SetupConfig = {
  database: { host: string; port: number; database: string; user: string; password: Secret }
  role: { name: string; password: Secret }
}

/**
 * Reads what `--prepare-database` needs: the owner's login, and the role that the control plane will log in with.
 * @throws ConfigError that lists every problem
 */
export function loadSetup(environment: Record<string, string | undefined>): SetupConfig {
  // whatever else a control plane needs is none of the owner's business, so it gets stand-ins
  const random = () => randomBytes(32).toString('base64')
  const neutral = { SDP_ADMIN_TOKEN: random(), SDP_MASTER_KEY: random() }
  const given = Object.fromEntries(Object.entries(environment).filter(([name]) => name.startsWith('SDP_DB_')))
  const { database, controlPlaneRole } = loadConfig({ ...given, ...neutral })
  if (!controlPlaneRole)
    throw new ConfigError([
      'SDP_DB_CONTROL_PLANE_USER and SDP_DB_CONTROL_PLANE_PASSWORD (or SDP_DB_CONTROL_PLANE_PASSWORD_FILE) are missing. They name the role to prepare.',
    ])
  if (controlPlaneRole.name === database.user)
    throw new ConfigError([
      'SDP_DB_CONTROL_PLANE_USER is the owner itself (SDP_DB_USER). Name a role of its own, such as sdpmcp_control.',
    ])
  return { database, role: controlPlaneRole }
}

function deepFreeze<T extends object>(value: T): Readonly<T> {
  for (const part of Object.values(value)) if (typeof part === 'object' && part !== null) deepFreeze(part)
  return Object.freeze(value)
}

function weakMasterKey(text: string): string | undefined {
  if (!/^[A-Za-z0-9+/_-]+={0,2}$/.test(text)) return 'it is not base64'
  const bytes = Buffer.from(text, 'base64')
  if (bytes.length !== 32) return `it has ${bytes.length} bytes, exactly 32 are needed`
  // 32 random bytes have fewer than 20 different values about once in 10^9 keys
  if (new Set(bytes).size < 16) return 'it is not random'
  return undefined
}
