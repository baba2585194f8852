import { randomBytes } from 'node:crypto'
import { homedir } from 'node:os'
import { join } from 'node:path'
import {
  type Boot,
  boot,
  bootVariable,
  type DataCenter,
  dataCenterHosts,
  dataCenters,
  type Role,
  roleNames,
  roles,
  type SdpSettings,
  type Toolset,
  toolsets,
} from './contract.ts'
import { generateSealingKey, type SealingKey, sealingKey } from './seal.ts'
import type { GivenCredentials } from './tokens/store.ts'

/** The only reader of process.env and process.argv, together with main.ts. */

/** What a person who runs an instance without a control plane says in the environment. */
export type StandAlone = {
  username: string
  sdp: SdpSettings
  credentials: GivenCredentials
  toolsets: Toolset[]
  readOnly: boolean
  transport: 'stdio' | 'http'
  listen: { host: string; port: number; loopback: boolean; apiKey: string | undefined }
  store:
    | { kind: 'postgres'; database: Boot['database']; masterKey: SealingKey }
    | { kind: 'file'; folder: string; key: SealingKey | undefined }
  logLevel: string
  /** names of upstreams that may lead to private addresses; `any`: nothing is checked */
  upstreams: string[] | 'any'
}

/** Everything that is wrong with the configuration, a sentence each with what to do. */
export class ConfigError extends Error {
  readonly problems: readonly string[]
  constructor(problems: readonly string[]) {
    super(problems.join('\n'))
    this.name = 'ConfigError'
    this.problems = problems
  }
}

type Environment = Record<string, string | undefined>

export function waitsForBoot(env: Environment): boolean {
  return env[bootVariable] === 'stdin'
}

/**
 * Checks the line the control plane writes.
 * @throws ConfigError that names the wrong parts, never their values
 */
export function parseBoot(line: string): Boot & { key: SealingKey } {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    throw new ConfigError(['The boot line is not valid JSON.'])
  }
  const parsed = boot.safeParse(value)
  if (!parsed.success)
    throw new ConfigError(
      parsed.error.issues.map(({ path, message }) => `Boot ${path.join('.') || 'line'}: ${message}.`),
    )
  const { sdp, allowInsecureUpstream } = parsed.data
  const insecure = (['baseUrl', 'accountsUrl'] as const).filter(name => !sdp[name].startsWith('https://'))
  if (insecure.length > 0 && !allowInsecureUpstream)
    throw new ConfigError(insecure.map(name => `Boot sdp.${name}: must be https.`))
  try {
    return { ...parsed.data, key: sealingKey(parsed.data.dataKey) }
  } catch (error) {
    throw new ConfigError([`Boot dataKey: ${(error as Error).message}.`])
  }
}

const secretNames = [
  'SDP_CLIENT_SECRET',
  'SDP_GRANT_CODE',
  'SDP_REFRESH_TOKEN',
  'SDP_MASTER_KEY',
  'SDP_DB_PASSWORD',
  'SDP_API_KEY',
]

/**
 * Reads the stand-alone configuration. Each variable may come as `<NAME>_FILE`, the path of a file that holds it.
 * @throws ConfigError with all problems at once
 */
export async function readStandAlone(
  env: Environment,
  args: readonly string[],
  isTerminal: boolean,
): Promise<StandAlone> {
  // an instance of the control plane needs no files
  const { readFile } = await import('node:fs/promises')
  const problems: string[] = []
  const values: Environment = {}
  for (const [name, value] of Object.entries(env)) {
    if (!name.startsWith('SDP_') || !value?.trim()) continue
    if (!name.endsWith('_FILE')) values[name] = value.trim()
    else
      try {
        values[name.slice(0, -'_FILE'.length)] ??= (await readFile(value.trim(), 'utf8')).trim()
      } catch (error) {
        problems.push(
          `${name}: the file cannot be read (${(error as NodeJS.ErrnoException).code}). Check its path and rights.`,
        )
      }
  }

  const required = (name: string, howTo: string): string => {
    const value = values[name]
    if (value === undefined) problems.push(`${name} is missing. ${howTo}`)
    return value ?? ''
  }
  const flag = (name: string): boolean => {
    const value = values[name] ?? 'false'
    if (!/^(true|false|1|0)$/i.test(value)) problems.push(`${name} is "${value}". Set it to true or false.`)
    return /^(true|1)$/i.test(value)
  }
  const port = (name: string, fallback: number): number => {
    const value = Number(values[name] ?? fallback)
    if (!Number.isInteger(value) || value < 1 || value > 65535)
      problems.push(`${name} is "${values[name]}". Set it to a port from 1 to 65535.`)
    return value
  }
  const masterKey = (): SealingKey | undefined => {
    const text = values.SDP_MASTER_KEY
    try {
      return text === undefined ? undefined : sealingKey(text)
    } catch {
      problems.push('SDP_MASTER_KEY must be 32 bytes in base64. Make one: openssl rand -base64 32')
      return undefined
    }
  }

  const insecure = flag('SDP_ALLOW_INSECURE_UPSTREAM')
  const dataCenter = (values.SDP_DATA_CENTER ?? 'US').toUpperCase() as DataCenter
  if (!dataCenters.includes(dataCenter))
    problems.push(`SDP_DATA_CENTER is "${dataCenter}". Set it to one of ${dataCenters.join(', ')}.`)
  const hosts = dataCenterHosts[dataCenter] ?? dataCenterHosts.US
  const origin = (name: string, fallback: string): string => {
    const text = values[name] ?? fallback
    const url = URL.canParse(text) ? new URL(text) : undefined
    if (!url || !/^https?:$/.test(url.protocol) || url.username || url.password) {
      problems.push(`${name} is not a web address. Set it to an origin such as ${fallback}.`)
      return fallback
    }
    if (url.protocol === 'http:' && !insecure)
      problems.push(
        `${name} is not https. Use https; for a test server on this machine set SDP_ALLOW_INSECURE_UPSTREAM=true.`,
      )
    return url.origin
  }

  const username = values.SDP_USERNAME ?? 'me'
  if (!/^[a-z][a-z0-9-]{0,30}[a-z0-9]$/.test(username))
    problems.push(
      `SDP_USERNAME is "${username}". Use 2 to 32 lower-case letters, digits and hyphens, beginning with a letter.`,
    )
  const role = values.SDP_ROLE as Role | undefined
  const isRole = role !== undefined && roleNames.includes(role)
  if (role !== undefined && !isRole) problems.push(`SDP_ROLE is "${role}". Set it to one of ${roleNames.join(', ')}.`)
  if (role !== undefined && values.SDP_TOOLSETS !== undefined)
    problems.push('SDP_ROLE and SDP_TOOLSETS exclude each other. Set one of them.')
  const standsFor = isRole ? roles[role] : { toolsets: ['core'], readOnly: false }
  const readOnly = flag('SDP_READ_ONLY')
  if (standsFor.readOnly && values.SDP_READ_ONLY !== undefined && !readOnly)
    problems.push(`SDP_READ_ONLY cannot be false with SDP_ROLE=${role}, which only reads. Leave one of them away.`)
  const enabled = (values.SDP_TOOLSETS ?? standsFor.toolsets.join(','))
    .split(',')
    .map(name => name.trim())
    .filter(Boolean)
  const unknown = enabled.filter(name => !toolsets.includes(name as Toolset))
  if (unknown.length > 0) problems.push(`SDP_TOOLSETS has ${unknown.join(', ')}. Toolsets are: ${toolsets.join(', ')}.`)

  const chosen: string[] = args.filter(arg => arg === '--stdio' || arg === '--http')
  if (new Set(chosen).size > 1) problems.push('--stdio and --http exclude each other. Give one of them.')
  for (const arg of args)
    if (!chosen.includes(arg))
      problems.push(`There is no option "${arg}". Options: --stdio, --http, --version, --help.`)
  const transport = chosen[0] === '--stdio' ? 'stdio' : chosen[0] === '--http' || isTerminal ? 'http' : 'stdio'

  const host = values.SDP_HTTP_HOST ?? '127.0.0.1'
  const loopback = /^(localhost|127(\.\d{1,3}){3}|::1)$/.test(host)
  const apiKey = values.SDP_API_KEY
  if (apiKey !== undefined && apiKey.length < 16)
    problems.push('SDP_API_KEY is shorter than 16 characters. Make one: openssl rand -hex 24')
  if (transport === 'http' && !loopback && apiKey === undefined)
    problems.push(
      `SDP_HTTP_HOST is ${host}, which others can reach. Set SDP_API_KEY (openssl rand -hex 24), or leave SDP_HTTP_HOST at 127.0.0.1.`,
    )

  const home = env.XDG_STATE_HOME?.trim() || join(homedir(), '.local', 'state')
  const key = masterKey()
  let store: StandAlone['store']
  if (values.SDP_DB_HOST === undefined) {
    store = { kind: 'file', folder: values.SDP_STATE_DIR ?? join(home, 'sdp-mcp'), key }
  } else {
    const database = {
      host: values.SDP_DB_HOST,
      port: port('SDP_DB_PORT', 5433),
      database: values.SDP_DB_NAME ?? 'sdp_mcp',
      user: values.SDP_DB_USER ?? 'sdpmcpservice',
      password: required(
        'SDP_DB_PASSWORD',
        'Set the password of the database user, or leave SDP_DB_HOST away to keep tokens in a sealed file.',
      ),
    }
    required('SDP_MASTER_KEY', 'It seals the tokens in the database. Make one: openssl rand -base64 32')
    store = { kind: 'postgres', database, masterKey: key ?? generateSealingKey() }
  }

  const selfClient = `Make a Self Client at ${hosts.console} and copy it from the tab Client Secret.`
  const config: StandAlone = {
    username,
    sdp: {
      dataCenter,
      portal: required(
        'SDP_INSTANCE_NAME',
        'It is the part after /app/ in the address of ServiceDesk Plus, for example itdesk.',
      ),
      baseUrl: origin('SDP_BASE_URL', hosts.api),
      accountsUrl: origin('SDP_ACCOUNTS_URL', hosts.accounts),
    },
    credentials: {
      clientId: required('SDP_CLIENT_ID', selfClient),
      clientSecret: required('SDP_CLIENT_SECRET', selfClient),
      grantCode: values.SDP_GRANT_CODE,
      refreshToken: values.SDP_REFRESH_TOKEN,
    },
    toolsets: enabled as Toolset[],
    readOnly: readOnly || standsFor.readOnly,
    transport,
    listen: { host, port: port('SDP_HTTP_PORT', 3456), loopback, apiKey },
    store,
    upstreams: insecure
      ? 'any'
      : (values.SDP_ALLOWED_UPSTREAM_HOSTS ?? '')
          .split(',')
          .map(name => name.trim().toLowerCase())
          .filter(Boolean),
    logLevel: values.SDP_LOG_LEVEL ?? (transport === 'stdio' ? 'warn' : 'info'),
  }
  if (!['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'].includes(config.logLevel))
    problems.push(`SDP_LOG_LEVEL is "${config.logLevel}". Set it to debug, info, warn or error.`)
  if (problems.length > 0) throw new ConfigError(problems)
  return config
}

/** Takes secrets out of the environment, so that no child process and no crash report inherits them. */
export function forgetSecrets(env: Environment): void {
  for (const name of secretNames) delete env[name]
}

/**
 * The key of the sealed file when none is given: made at the first start, in a file only its owner can read.
 * @throws ConfigError when the file holds something else
 */
export async function keyBeside(folder: string): Promise<SealingKey> {
  const { link, mkdir, readFile, rm, writeFile } = await import('node:fs/promises')
  const path = join(folder, 'master.key')
  await mkdir(folder, { recursive: true, mode: 0o700 })
  const draft = `${path}.${randomBytes(6).toString('hex')}`
  await writeFile(draft, `${randomBytes(32).toString('base64')}\n`, { mode: 0o600, flag: 'wx' })
  // a link fails when the file exists: two first starts agree on one key
  await link(draft, path).catch(error => {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
  })
  await rm(draft)
  try {
    return sealingKey(await readFile(path, 'utf8'))
  } catch (cause) {
    throw new ConfigError([
      `${path} does not hold a key (${(cause as Error).message}). Restore it from a backup; or move it away, and authorize again.`,
    ])
  }
}
