import {
  InitializedNotificationSchema,
  InitializeRequestSchema,
  JSONRPCMessageSchema,
  ListToolsRequestSchema,
} from '@modelcontextprotocol/sdk/types.js'
import { pino } from 'pino'
import { parseBoot } from './config.ts'
import type { InstanceContext } from './context.ts'
import { statementClaims } from './contract.ts'
import { buildServer } from './server.ts'

/**
 * What every start and every first session does, done while the snapshot is made: the code for it is compiled and zod has built
 * its parsers, so that no instance does either again. Nothing of it may last: no connection, no timer, no random value; and no
 * AbortController, whose clean-up a snapshot cannot hold, so messages are only read and not answered.
 */
export function rehearse(): void {
  parseBoot(JSON.stringify(boot))
  statementClaims.safeParse({ purpose: 'mcp' })
  buildServer(nobody)
  const params = {
    protocolVersion: '2025-06-18',
    capabilities: {},
    clientInfo: { name: 'rehearsal', version: '0.0.0' },
  }
  const messages = [
    [InitializeRequestSchema, { id: 1, method: 'initialize', params }],
    [InitializedNotificationSchema, { method: 'notifications/initialized' }],
    [ListToolsRequestSchema, { id: 2, method: 'tools/list', params: {} }],
  ] as const
  for (const [schema, message] of messages) schema.parse(JSONRPCMessageSchema.parse({ jsonrpc: '2.0', ...message }))
}

const unreachable = 'http://127.0.0.1:1'
const sdp = { dataCenter: 'US', portal: 'rehearsal', baseUrl: unreachable, accountsUrl: unreachable } as const

const boot = {
  version: 1,
  user: { id: '00000000-0000-4000-8000-000000000000', username: 'rehearsal', displayName: '', email: null },
  generation: 1,
  listen: { host: '127.0.0.1', port: 1 },
  statementKeys: [{ kty: 'OKP', crv: 'Ed25519', x: '', kid: 'rehearsal', alg: 'EdDSA' }],
  database: { host: '127.0.0.1', port: 1, database: '-', user: '-', password: '-' },
  dataKey: Buffer.alloc(32).toString('base64'),
  sdp,
  allowInsecureUpstream: true,
  toolsets: ['core'],
  readOnly: false,
  logLevel: 'silent',
}

const nobody: InstanceContext = {
  user: { id: '-', username: 'rehearsal', displayName: '', email: null },
  sdp,
  toolsets: ['core'],
  readOnly: false,
  tokens: {
    accessToken: () => Promise.reject(new Error('a rehearsal has no token')),
    invalidate: async () => {},
    status: async () => ({
      state: 'needs-authorization',
      scopes: [],
      accessTokenExpiresAt: null,
      lastRefreshedAt: null,
      mintsInWindow: 0,
      reason: null,
    }),
  },
  http: () => Promise.reject(new Error('a rehearsal calls nobody')),
  // its usual destination is cleaned up after by V8's garbage collector, which a snapshot cannot wait for
  log: pino({ level: 'silent', base: null }, { write() {} }),
  now: () => 0,
  version: '0.0.0',
}
