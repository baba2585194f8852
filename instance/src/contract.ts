import { z } from 'zod'

export { addressKind, ipv6Groups, matchesHost, mayCall, plainAddress } from './addresses.ts'

/**
 * What control plane and instance agree on. The control plane writes one line of JSON, a {@link Boot}, to the
 * standard input of the instance it starts: so nothing secret stands in the container's definition, its
 * environment, its arguments or on a disk.
 */

/** Environment of a container: nothing in it is secret. `SDP_BOOT=stdin` makes the instance wait for its {@link Boot} line. */
export const bootVariable = 'SDP_BOOT'

/** Exit codes of an instance process, so that the fleet can name the reason. */
export const exitCodes = { bootMissing: 64, bootInvalid: 65, portInUse: 66, internal: 70 } as const

export const toolsets = [
  'core',
  'requests_extra',
  'approvals',
  'problems',
  'changes',
  'releases',
  'assets',
  'cmdb',
  'projects',
  'solutions',
  'purchasing',
  'announcements',
  'destructive',
  'advanced',
] as const
export type Toolset = (typeof toolsets)[number]

/**
 * Ready-made choices of toolsets, for who does not want to compose one. A role is expanded when it is given and not
 * kept, so that a later version can change a role without changing what people were granted.
 */
export const roles = {
  /** every read there is, no write */
  viewer: { toolsets: toolsets.filter(name => name !== 'destructive'), readOnly: true },
  technician: { toolsets: ['core', 'approvals', 'assets'], readOnly: false },
  problem_change: { toolsets: ['core', 'approvals', 'assets', 'problems', 'changes', 'releases'], readOnly: false },
  project: { toolsets: ['core', 'projects'], readOnly: false },
  /** everything but `destructive`, and so without what needs it too: `sdp_api_write` */
  power: { toolsets: toolsets.filter(name => name !== 'destructive'), readOnly: false },
} as const satisfies Record<string, { toolsets: readonly Toolset[]; readOnly: boolean }>
export type Role = keyof typeof roles
export const roleNames = Object.keys(roles) as [Role, ...Role[]]

export const dataCenters = ['US', 'EU', 'IN', 'AU', 'CN', 'JP', 'CA', 'UK', 'SA', 'AE'] as const
export type DataCenter = (typeof dataCenters)[number]

/** Accounts and API hosts of each data center; never derived from one another (docs/sdp-api.md 1.1). */
export const dataCenterHosts: Record<DataCenter, { api: string; accounts: string; console: string }> = {
  US: dc('sdpondemand.manageengine.com', 'accounts.zoho.com', 'api-console.zoho.com'),
  EU: dc('sdpondemand.manageengine.eu', 'accounts.zoho.eu', 'api-console.zoho.eu'),
  IN: dc('sdpondemand.manageengine.in', 'accounts.zoho.in', 'api-console.zoho.in'),
  AU: dc('servicedeskplus.net.au', 'accounts.zoho.com.au', 'api-console.zoho.com.au'),
  CN: dc('servicedeskplus.cn', 'accounts.zoho.com.cn', 'api-console.zoho.com.cn'),
  JP: dc('servicedeskplus.jp', 'accounts.zoho.jp', 'api-console.zoho.jp'),
  CA: dc('servicedeskplus.ca', 'accounts.zohocloud.ca', 'api-console.zohocloud.ca'),
  UK: dc('servicedeskplus.uk', 'accounts.zoho.uk', 'api-console.zoho.uk'),
  SA: dc('servicedeskplus.sa', 'accounts.zoho.sa', 'api-console.zoho.sa'),
  AE: dc('servicedeskplus.ae', 'accounts.zoho.ae', 'api-console.zoho.ae'),
}
function dc(api: string, accounts: string, console: string) {
  return { api: `https://${api}`, accounts: `https://${accounts}`, console: `https://${console}` }
}

/** Zoho scopes a toolset works with (docs/sdp-api.md 2.9), as the person enters them in the console. */
const scopesOf: Record<Toolset, string[]> = {
  core: ['requests.ALL', 'solutions.READ', 'users.READ', 'setup.READ'],
  requests_extra: ['requests.ALL'],
  approvals: ['requests.ALL', 'changes.ALL'],
  problems: ['problems.ALL'],
  changes: ['changes.ALL'],
  releases: ['releases.ALL'],
  assets: ['assets.ALL'],
  cmdb: ['cmdb.ALL'],
  projects: ['projects.ALL'],
  solutions: ['solutions.ALL'],
  purchasing: ['contracts.READ', 'purchases.READ'],
  announcements: ['general.ALL'],
  destructive: ['requests.ALL', 'assets.ALL'],
  advanced: ['general.ALL'],
}

/** Full scope names for a set of toolsets; a `.READ` beside an `.ALL` of the same module is left out. */
export function scopesFor(toolsets: readonly Toolset[], readOnly: boolean): string[] {
  const wanted = new Set(toolsets.flatMap(toolset => scopesOf[toolset]))
  const narrowed = [...wanted].map(scope => (readOnly ? scope.replace(/\.ALL$/, '.READ') : scope))
  const kept = [...new Set(narrowed)].filter(
    scope => !(scope.endsWith('.READ') && narrowed.includes(scope.replace(/READ$/, 'ALL'))),
  )
  return [...kept.map(scope => `SDPOnDemand.${scope}`), 'AaaServer.profile.READ']
}

export const connectionStates = ['connected', 'needs-authorization', 'needs-reauthorization'] as const
export type ConnectionState = (typeof connectionStates)[number]

export const sdpSettings = z.object({
  dataCenter: z.enum(dataCenters),
  /** the `<portal>` of `/app/<portal>/api/v3` */
  portal: z.string().min(1),
  /** origin of the SDP site, no path */
  baseUrl: z.url(),
  /** origin of the accounts server, no path */
  accountsUrl: z.url(),
})
export type SdpSettings = z.infer<typeof sdpSettings>

export const boot = z.object({
  version: z.literal(1),
  user: z.object({ id: z.uuid(), username: z.string(), displayName: z.string(), email: z.string().nullable() }),
  generation: z.number().int().positive(),
  listen: z.object({ host: z.string(), port: z.number().int().min(1).max(65535) }),
  /** who may sign the statements this instance accepts: Ed25519 public keys as JWK, each with its `kid` */
  statementKeys: z.array(z.record(z.string(), z.unknown())).min(1),
  database: z.object({
    host: z.string(),
    port: z.number().int(),
    database: z.string(),
    user: z.string(),
    password: z.string(),
  }),
  /** base64; opens and seals this user's tokens */
  dataKey: z.string(),
  sdp: sdpSettings,
  /** http upstreams are allowed: evaluation and tests only */
  allowInsecureUpstream: z.boolean().default(false),
  /** upstream names that may lead to private addresses, see `mayCall`; all others must be public */
  allowedUpstreamHosts: z.array(z.string()).default([]),
  /** the HTTP proxy (CONNECT) that is the only way out, and what to show it; absent: straight to the upstream */
  egress: z.object({ proxy: z.url(), token: z.string() }).optional(),
  /** most MCP sessions at once */
  maxSessions: z.number().int().positive().default(100),
  toolsets: z.array(z.enum(toolsets)),
  readOnly: z.boolean(),
  /** whether admins can make connect links; told to people who must authorize */
  consentLinks: z.boolean().default(false),
  logLevel: z.string().default('info'),
})
export type Boot = z.infer<typeof boot>

/** Name of the database role of one user's instance. Row-level security in 0001_init.sql spells it the same way. */
export function databaseRole(userId: string): string {
  return `sdpmcp_u_${userId.replaceAll('-', '')}`
}

/** Where a sealed column lives: the associated data of its seal. */
export function sealContext(table: string, column: string, userId: string): string {
  return `${table}.${column}:${userId}`
}

/**
 * The signed statement of who is calling: a JWT (EdDSA), issuer {@link statementIssuer}, audience
 * {@link statementAudience}, at most {@link statementLifeSeconds} old, in `Authorization: Bearer`.
 */
export const statementIssuer = 'sdp-mcp'
export const statementLifeSeconds = 300
export function statementAudience(userId: string, generation: number): string {
  return `instance:${userId}:${generation}`
}
export const statementClaims = z.object({
  /** `mcp`: the user's client. `control`: the control plane itself; the only purpose that may call `/control/*`. */
  purpose: z.enum(['mcp', 'control']),
  /** username */
  sub: z.string(),
})
export type StatementClaims = z.infer<typeof statementClaims>

/**
 * Last words: what the proxy writes to a client's event stream when the instance dies on it, so that whoever waits for an
 * answer gets an error at once; SDK clients would wait a whole minute. Base64 of complete events, made by the instance, so
 * that the proxy need not know what they say. In the head of an event stream they are for that stream; in the head of any
 * other answer for the stream that {@link streamHeader} names, in place of what it was told before.
 */
export const lastWordsHeader = 'x-sdp-last-words'
/** Names an event stream of an instance, for {@link lastWordsHeader}. */
export const streamHeader = 'x-sdp-stream'

/** `GET /healthz` of an instance; needs no statement and tells nothing secret. */
export const health = z.object({
  status: z.literal('ok'),
  /** equals {@link statementAudience}: proves that the process behind an address is the one we mean */
  audience: z.string(),
  version: z.string(),
  uptimeSeconds: z.number(),
  sessions: z.number().int(),
  /** calls that were not answered yet */
  inFlight: z.number().int().default(0),
  /** sessions with a call, an open stream, or traffic within the last half minute; absent from an older instance */
  inUse: z.number().int().optional(),
})
export type Health = z.infer<typeof health>

/**
 * `POST /control/connection/exchange`: exchange the grant code waiting in oauth_tokens, if any. Repeatable.
 * `POST /control/connection/revoke`: revoke at Zoho and erase the tokens.
 * Both answer 200 with this body; `reasonCode` and `reason` tell why it is not `connected`.
 */
export const connectionReport = z.object({
  state: z.enum(connectionStates),
  scopes: z.array(z.string()),
  /** e.g. `grant-code-rejected`, `client-rejected`, `accounts-unavailable`, `refresh-token-rejected` */
  reasonCode: z.string().nullable(),
  /** a sentence with Zoho's reason and the next step; shown to admins as it is */
  reason: z.string().nullable(),
})
export type ConnectionReport = z.infer<typeof connectionReport>

/** Upper bounds of the latency histograms in milliseconds; a last bucket holds everything slower. */
export const latencyBoundsMs = [10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000] as const

/** SDP modules that the metrics tell apart; all others, e.g. those a site made for itself, are `other`. */
export const upstreamModules = [
  ...['requests', 'problems', 'changes', 'releases', 'projects', 'tasks', 'solutions', 'topics', 'announcements'],
  ...['assets', 'workstations', 'software', 'products', 'product_types', 'asset_states', 'vendors', 'cmdb'],
  ...['contracts', 'purchase_orders', 'attachments', 'worklogs', 'notes', 'checklists', 'udf_fields'],
  ...['users', 'requesters', 'technicians', 'roles', 'groups', 'support_groups', 'user_groups'],
  ...['sites', 'regions', 'departments', 'portals', 'categories', 'subcategories', 'items', 'service_categories'],
  ...['priorities', 'urgencies', 'impacts', 'levels', 'modes', 'statuses', 'request_types', 'request_templates'],
  ...[
    'change_templates',
    'change_types',
    'change_stages',
    'change_statuses',
    'change_risks',
    'task_types',
    'task_templates',
  ],
  ...['worklog_types', 'closure_codes', 'request_maintenances', 'change_maintenances'],
] as const
const knownModules = new Set<string>(upstreamModules)
export const upstreamModule = (name: string): string => (knownModules.has(name) ? name : 'other')

// An instance may have been taken over: what it reports is bounded here, and by day and user where it is stored.
const count = z.int().min(0)
const millis = z.number().min(0).max(1e13)
const buckets = z.array(count).max(latencyBoundsMs.length + 1)
const mostToolRows = 2_000
const mostUpstreamRows = 500

/**
 * `GET /control/usage`: what the process did since it started, without arguments or answers. The numbers only grow
 * while `epoch` stays the same, so a reader keeps the latest of each (epoch, day, tool) and adds them up.
 */
export const usageReport = z.object({
  epoch: z.uuid(),
  /** since the process started to count; absent from an older instance */
  uptimeSeconds: z.number().min(0).optional(),
  tools: z
    .array(
      z.object({
        /** UTC, `YYYY-MM-DD`; the last seven days */
        day: z.iso.date(),
        tool: z.string().regex(/^[a-z][a-z0-9_]{0,63}$/),
        calls: count,
        errors: count,
        totalMs: millis,
        maxMs: millis,
        /** calls by latency, see {@link latencyBoundsMs}; empty from an older instance */
        buckets: buckets.default([]),
      }),
    )
    .max(mostToolRows),
  /** requests to the SDP API; absent from an older instance, like what follows */
  upstream: z
    .array(
      z.object({
        /** first part of the path below `/api/v3`, e.g. `requests`, see {@link upstreamModule} */
        module: z.string().max(64),
        outcome: z.enum(['ok', 'refused', 'limited', 'failed', 'unreachable']),
        calls: count,
        totalMs: millis,
        buckets,
      }),
    )
    .max(mostUpstreamRows)
    .default([]),
  tokens: z
    .object({
      /** calls of the token endpoint, and how many of them failed */
      mints: count,
      failures: count,
      /** of the 10 in 10 minutes that Zoho allows a refresh token */
      mintsLeft: count,
      /** `failing`: the accounts server is left alone for a while */
      accountsServer: z.enum(['fine', 'failing']),
    })
    .nullable()
    .default(null),
})
export type UsageReport = z.infer<typeof usageReport>

/**
 * `GET /control/sessions`: the MCP sessions of this instance. The ids are as good as keys within the user: they are for
 * the control plane's own routing and are never shown.
 */
export const sessionReport = z.object({
  sessions: z.array(
    z.object({
      id: z.string(),
      transport: z.enum(['sse', 'streamable']),
      /** as the client introduced itself; null before it did */
      client: z.object({ name: z.string(), version: z.string() }).nullable(),
      startedAt: z.iso.datetime(),
      lastActivityAt: z.iso.datetime(),
      calls: z.number().int(),
      inFlight: z.number().int(),
      openStreams: z.number().int(),
      bytesIn: z.number().int(),
      bytesOut: z.number().int(),
    }),
  ),
})
export type SessionReport = z.infer<typeof sessionReport>
