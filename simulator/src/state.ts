import { createHash } from 'node:crypto'

/** A person with a Zoho account. What they may do in a portal stands in that portal's `users` table. */
export interface Person {
  username: string
  zuid: string
  email: string
  name: string
  firstName: string
  lastName: string
}

/** An OAuth client of the developer console (docs/sdp-api.md 2.1). A self client belongs to one person. */
export interface OauthClient {
  clientId: string
  clientSecret: string
  kind: 'self' | 'server'
  name: string
  /** The person who made a self client; a server client serves everybody. */
  owner?: string
  redirectUris: string[]
  /** Clients of another data center are unknown here (2.8 `invalid_client`). */
  dataCenter: string
}

export interface GrantCode {
  code: string
  clientId: string
  user: string
  scopes: string[]
  createdAt: number
  expiresAt: number
  used: boolean
  /** False when the consent flow was asked without `access_type=offline`. */
  givesRefreshToken: boolean
  redirectUri?: string
  codeChallenge?: string
}

export interface RefreshToken {
  token: string
  clientId: string
  user: string
  scopes: string[]
  createdAt: number
  /** Instants of the refreshes of the last ten minutes; the throttle of 2.7 counts them. */
  mintedAt: number[]
}

export interface AccessToken {
  token: string
  clientId: string
  user: string
  scopes: string[]
  createdAt: number
  expiresAt: number
  /** Absent for client_credentials. */
  refreshToken?: string
}

/**
 * One record as it is kept: references as ids, instants as epoch milliseconds.
 * Field names are the wire names; `parent` is the id of the record it belongs to, `parentTable` that record's table.
 */
export interface StoredRecord {
  id: string
  parent?: string
  parentTable?: string
  [field: string]: unknown
}

export interface Portal {
  /** The URL name in `/app/<name>/api/v3`. */
  name: string
  id: string
  displayName: string
  isDefault: boolean
  /** Twelve digits before the six of 5.1. */
  idPrefix: string
  lastId: number
  lastDisplayIds: Record<string, number>
  tables: Record<string, Record<string, StoredRecord>>
}

export interface State {
  dataCenter: string
  people: Person[]
  clients: OauthClient[]
  grantCodes: GrantCode[]
  refreshTokens: RefreshToken[]
  accessTokens: AccessToken[]
  portals: Portal[]
}

export function emptyState(): State {
  return {
    dataCenter: 'us',
    people: [],
    clients: [],
    grantCodes: [],
    refreshTokens: [],
    accessTokens: [],
    portals: [],
  }
}

export function newPortal(name: string, displayName: string, idPrefix: string, isDefault: boolean): Portal {
  return {
    name,
    id: `${idPrefix}000001`,
    displayName,
    isDefault,
    idPrefix,
    lastId: 101000,
    lastDisplayIds: {},
    tables: {},
  }
}

/** The next free 18-digit id of the portal. */
export function nextId(portal: Portal): string {
  portal.lastId += 1
  return (BigInt(portal.idPrefix) * 1_000_000n + BigInt(portal.lastId)).toString()
}

/** The id of a built-in record, made of the site's prefix and a suffix of docs/sdp-api.md 5.1. */
export function builtInId(portal: Portal, suffix: string): string {
  return portal.idPrefix + suffix
}

/** The next short number of a module (`display_id`). */
export function nextDisplayId(portal: Portal, table: string): string {
  const next = (portal.lastDisplayIds[table] ?? 0) + 1
  portal.lastDisplayIds[table] = next
  return String(next)
}

export function rowsOf(portal: Portal, table: string): StoredRecord[] {
  return Object.values(portal.tables[table] ?? {})
}

export function rowById(portal: Portal, table: string, id: unknown): StoredRecord | undefined {
  return typeof id === 'string' ? portal.tables[table]?.[id] : undefined
}

export function childrenOf(portal: Portal, table: string, parentId: string): StoredRecord[] {
  return rowsOf(portal, table).filter(row => row.parent === parentId)
}

export function insert(portal: Portal, table: string, record: StoredRecord): StoredRecord {
  portal.tables[table] ??= {}
  portal.tables[table][record.id] = record
  return record
}

export function remove(portal: Portal, table: string, id: string): void {
  delete portal.tables[table]?.[id]
}

/** The first row whose `name` is `name`, ignoring case. */
export function rowByName(portal: Portal, table: string, name: string): StoredRecord | undefined {
  const wanted = name.toLowerCase()
  return rowsOf(portal, table).find(row => String(row.name).toLowerCase() === wanted)
}

/** Lower-case hex that is the same for the same words, so that seeded credentials are stable and none is stored in Git. */
export function stableHex(words: string, length: number): string {
  let hex = ''
  for (let round = 0; hex.length < length; round += 1) {
    hex += createHash('sha256').update(`sdp-simulator:${words}:${round}`).digest('hex')
  }
  return hex.slice(0, length)
}
