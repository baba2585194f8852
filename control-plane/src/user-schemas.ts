import { connectionStates, dataCenters, roleNames, roles, toolsets } from '@sdp-mcp/instance/contract'
import { z } from 'zod'

/** The shapes of users and API keys in the admin API: what a body may hold, and what an answer holds. */

export const username = z
  .string()
  .regex(
    /^[a-z][a-z0-9-]{0,30}[a-z0-9]$/,
    'must be 2 to 32 lower-case letters, digits and hyphens; it starts with a letter and does not end with a hyphen',
  )

const text = (most: number) =>
  z
    .string()
    .trim()
    .min(1, 'must not be empty')
    .max(most, `must have at most ${most} characters`)
    .regex(/^\P{Control}*$/u, 'must not contain control characters')
const zohoSecret = text(500).regex(/^[\x21-\x7e]*$/, 'must be printable ASCII without spaces, as Zoho shows it')

const sdpSettings = z.strictObject({
  dataCenter: z.enum(dataCenters).nullable().optional(),
  portal: text(100)
    .regex(/^[A-Za-z0-9_-]+$/, 'must be the portal’s URL name: the part after /app/ in the address of ServiceDesk Plus')
    .nullable()
    .optional(),
  baseUrl: z
    .url({ protocol: /^https?$/, error: 'must be a URL such as https://helpdesk.example.com' })
    .max(500, 'must have at most 500 characters')
    .nullable()
    .optional(),
  accountsUrl: z
    .url({ protocol: /^https?$/, error: 'must be a URL such as https://accounts.zoho.com' })
    .max(500, 'must have at most 500 characters')
    .nullable()
    .optional(),
  clientId: text(200).optional(),
  clientSecret: zohoSecret.optional(),
})

export const authorizationMaterial = z
  .strictObject({ grantCode: zohoSecret.optional(), refreshToken: zohoSecret.optional() })
  .refine(
    value => (value.grantCode === undefined) !== (value.refreshToken === undefined),
    'give either grantCode or refreshToken',
  )

const limit = (least: number, most: number) =>
  z
    .int('must be a whole number')
    .min(least, `must be at least ${least}`)
    .max(most, `must be at most ${most}`)
    .nullable()
    .optional()

/** What one user may use at once; null means: the control plane's default of the moment. 0 requests: no limit. */
const limits = z.strictObject({
  requestsPerSecond: limit(0, 100_000),
  /** requests that may come at once after a quiet time */
  burst: limit(1, 100_000),
  /** calls and event streams open at once */
  concurrentRequests: limit(0, 100_000),
  /** MCP sessions at once; a change replaces the container */
  sessions: limit(1, 1_000),
})
export type StoredLimits = { [name in keyof UserLimits]?: number | null | undefined }

const profile = {
  displayName: text(200).optional(),
  email: z.email('must be an e-mail address').max(254).nullable().optional(),
  toolsets: z
    .array(z.enum(toolsets))
    .min(1, 'must name at least one toolset')
    .transform(names => [...new Set(names)])
    .optional(),
  readOnly: z.boolean().optional(),
  role: z
    .enum(roleNames)
    .optional()
    .describe('A ready-made choice of toolsets and readOnly, in place of toolsets; see docs/tools.md'),
}
type Profile = {
  toolsets?: string[] | undefined
  readOnly?: boolean | undefined
  role?: keyof typeof roles | undefined
}

const roleOrToolsets = {
  check: ({ role, toolsets: chosen }: Profile) => role === undefined || chosen === undefined,
  params: { path: ['role'], error: 'give role or toolsets, not both' },
}
const viewersOnlyRead = {
  check: ({ role, readOnly }: Profile) => !(role && roles[role].readOnly && readOnly === false),
  params: { path: ['readOnly'], error: 'cannot be false with the role viewer, which only reads' },
}

/** Puts what a role stands for in its place; a `readOnly` beside it may only narrow. */
function expandRole<T extends Profile>({ role, ...rest }: T) {
  if (role === undefined) return rest
  const { toolsets: named, readOnly } = roles[role]
  return { ...rest, toolsets: [...named], readOnly: rest.readOnly ?? readOnly }
}

export const newUser = z
  .strictObject({
    username,
    ...profile,
    sdp: sdpSettings
      .extend({ grantCode: zohoSecret.optional(), refreshToken: zohoSecret.optional() })
      .refine(
        value => value.grantCode === undefined || value.refreshToken === undefined,
        'give grantCode or refreshToken, not both',
      )
      .optional(),
  })
  .refine(roleOrToolsets.check, roleOrToolsets.params)
  .refine(viewersOnlyRead.check, viewersOnlyRead.params)
  .transform(expandRole)
export type NewUser = z.infer<typeof newUser>

export const userChange = z
  .strictObject({
    ...profile,
    sdp: sdpSettings.optional(),
    suspended: z.boolean().optional(),
    limits: limits.optional(),
  })
  .refine(value => Object.keys(value).length > 0, 'give at least one field to change')
  .refine(roleOrToolsets.check, roleOrToolsets.params)
  .refine(viewersOnlyRead.check, viewersOnlyRead.params)
  .transform(expandRole)
export type UserChange = z.infer<typeof userChange>

export const newApiKey = z.strictObject({
  name: text(100).optional(),
  expiresAt: z.iso.datetime({ offset: true, error: 'must be a date and time such as 2027-01-31T00:00:00Z' }).optional(),
})

export const keyRotation = z
  .strictObject({
    overlapSeconds: z
      .int('must be a whole number of seconds')
      .min(0, 'must be 0 or more')
      .max(90 * 86_400, 'must be at most 7776000 (90 days)')
      .optional(),
    validUntil: newApiKey.shape.expiresAt,
    name: text(100).optional(),
  })
  .refine(
    value => value.overlapSeconds === undefined || value.validUntil === undefined,
    'give overlapSeconds or validUntil, not both',
  )
export type KeyRotation = z.infer<typeof keyRotation>

export const userLimits = z.object({
  requestsPerSecond: z.int(),
  burst: z.int(),
  concurrentRequests: z.int(),
  sessions: z.int(),
})
export type UserLimits = z.infer<typeof userLimits>

export const userView = z.object({
  username: z.string(),
  displayName: z.string(),
  email: z.string().nullable(),
  suspended: z.boolean(),
  createdAt: z.string(),
  toolsets: z.array(z.enum(toolsets)),
  readOnly: z.boolean(),
  limits: userLimits,
  sdp: z.object({
    dataCenter: z.enum(dataCenters),
    portal: z.string().nullable(),
    baseUrl: z.string(),
    accountsUrl: z.string(),
    clientId: z.string().nullable(),
    connection: z.enum(connectionStates),
    /** why it is not `connected`, with the next step */
    connectionReason: z.string().nullable(),
    lastRefreshedAt: z.string().nullable(),
  }),
  instance: z.object({
    state: z.enum(['starting', 'ready', 'stopped', 'failed', 'draining']),
    port: z.number().int().nullable(),
    containerId: z.string().nullable(),
    image: z.string().nullable(),
    reasonCode: z.string().nullable(),
    reason: z.string().nullable(),
  }),
})
export type UserView = z.infer<typeof userView>

export const apiKeyView = z.object({
  id: z.string(),
  name: z.string().nullable(),
  prefix: z.string(),
  createdAt: z.string(),
  expiresAt: z.string().nullable(),
  lastUsedAt: z.string().nullable(),
  /** what the last client said of itself (User-Agent) */
  lastClient: z.string().nullable(),
  lastAddress: z.string().nullable(),
  /** id of the key that takes this one's place; this one ends at `expiresAt` */
  replacedBy: z.string().nullable(),
})
export type ApiKeyView = z.infer<typeof apiKeyView>
export type IssuedApiKey = { id: string; prefix: string; key: string }
