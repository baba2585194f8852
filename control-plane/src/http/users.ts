import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { connectionStates } from '@sdp-mcp/instance/contract'
import { z } from 'zod'
import type { Connections } from '../connections.ts'
import type { Consent } from '../consent.ts'
import type { Directory } from '../directory.ts'
import { AppError } from '../errors.ts'
import type { Fleet } from '../fleet/fleet.ts'
import type { Runtime } from '../fleet/runtime.ts'
import {
  apiKeyView,
  authorizationMaterial,
  keyRotation,
  newApiKey,
  newUser,
  userChange,
  username,
  userView,
} from '../user-schemas.ts'
import type { Users } from '../users.ts'
import { actorOf } from './auth.ts'
import { clientSetup, endpointsOf } from './client-setup.ts'
import type { App } from './server.ts'

const byName = z.object({ username })
const byKey = byName.extend({ id: z.uuid('must be the id of a key') })
const issuedKey = z.object({ id: z.string(), prefix: z.string(), key: z.string().describe('Shown this once') })
const created = z.object({
  user: userView,
  apiKey: issuedKey,
  endpoints: z.object({ sse: z.string(), mcp: z.string() }),
  claudeCode: z.object({ command: z.string(), mcpJson: z.record(z.string(), z.unknown()) }),
})
const page = z.strictObject({
  limit: z.coerce
    .number('must be a number')
    .int('must be a whole number')
    .min(1, 'must be at least 1')
    .max(200, 'must be at most 200')
    .default(50),
  cursor: username.optional(),
})

const longestWaitSeconds = 60

export type UserRoutes = {
  users: Users
  connections: Connections
  consent: Consent
  fleet: Fleet
  runtime: Runtime
  directory: Directory
  publicUrl: string
  now: () => number
}

export function userRoutes(
  app: App,
  { users, connections, consent, fleet, runtime, directory, publicUrl, now }: UserRoutes,
): void {
  const followers = new Set<AbortController>()
  // who follows a log would keep the server open
  app.addHook('preClose', async () => {
    for (const follower of followers) follower.abort()
  })

  app.post(
    '/v1/users',
    {
      schema: {
        summary: 'Add a user; an instance of its own is started',
        description:
          'With `Prefer: wait=<seconds>` (RFC 7240, at most 60) the answer comes when the instance is ready and the grant code is exchanged. If that fails, the answer is the problem and no user was added.',
        tags: ['users'],
        // other headers are let through
        headers: z.looseObject({ prefer: z.string().optional().describe('`wait=30`: see above') }),
        body: newUser,
        response: { 201: created },
      },
    },
    async (request, reply) => {
      const waitSeconds = preferredWait(request.headers.prefer)
      await fleet.checkCapacity()
      const { userId, apiKey } = await users.create(request.body, actorOf(request))
      const name = request.body.username
      await directory.refresh(userId)
      if (waitSeconds === undefined)
        void fleet.reconcile(userId).catch(error => request.log.warn({ error }, 'fleet.reconcile.failed'))
      else {
        try {
          await connections.settle(userId, { timeoutMs: waitSeconds * 1000 })
          reply.header('preference-applied', `wait=${waitSeconds}`)
        } catch (error) {
          const stillStarting = error instanceof AppError && error.code === 'instance-starting'
          if (!stillStarting) {
            // whatever goes wrong here must not hide why the user could not be completed
            await (async () => {
              await users.undoCreate(userId)
              await directory.refresh(userId)
              await fleet.reconcile(userId)
            })().catch(cleanup => request.log.warn({ error: cleanup, username: name }, 'user.undo.pending'))
            throw error
          }
        }
      }
      reply.code(201).header('location', `/v1/users/${name}`)
      return {
        user: await users.get(name),
        apiKey,
        endpoints: endpointsOf(publicUrl, name),
        claudeCode: clientSetup(publicUrl, name, apiKey.key),
      }
    },
  )

  app.get(
    '/v1/users',
    {
      schema: {
        summary: 'List users by username',
        tags: ['users'],
        querystring: page,
        response: { 200: z.object({ users: z.array(userView), nextCursor: z.string().nullable() }) },
      },
    },
    request => users.list(request.query),
  )

  app.get(
    '/v1/users/:username',
    { schema: { summary: 'One user', tags: ['users'], params: byName, response: { 200: userView } } },
    request => users.get(request.params.username),
  )

  app.patch(
    '/v1/users/:username',
    {
      schema: {
        summary: 'Change a user',
        description:
          'What the instance must know (toolsets, readOnly, names, sdp) replaces the container; clients reconnect.',
        tags: ['users'],
        params: byName,
        body: userChange,
        response: { 200: userView },
      },
    },
    async request => {
      const userId = await users.change(request.params.username, request.body, actorOf(request))
      await directory.refresh(userId)
      void fleet.reconcile(userId).catch(error => request.log.warn({ error }, 'fleet.reconcile.failed'))
      return users.get(request.params.username)
    },
  )

  app.delete(
    '/v1/users/:username',
    {
      schema: {
        summary: 'Remove a user',
        description:
          'Ends streams, removes the container, revokes the grant at Zoho and erases the secrets. The audit stays.',
        tags: ['users'],
        params: byName,
        response: { 204: z.null() },
      },
    },
    async (request, reply) => {
      const userId = await users.remove(request.params.username, actorOf(request))
      // keys are dead from here on, whatever happens to the rest
      await directory.refresh(userId)
      try {
        await fleet.reconcile(userId)
      } catch (error) {
        throw new AppError(
          'user-removal-pending',
          `"${request.params.username}" can no longer connect, but the container could not be removed yet. It goes on by itself; look at GET /v1/system.`,
          { cause: error, retryAfterSeconds: 15 },
        )
      }
      return reply.code(204).send(null)
    },
  )

  app.post(
    '/v1/users/:username/api-keys',
    {
      schema: {
        summary: 'Make another API key',
        tags: ['api keys'],
        params: byName,
        body: newApiKey,
        response: { 201: z.object({ apiKey: issuedKey, claudeCode: created.shape.claudeCode }) },
      },
      // everything in the body is optional, so the body is, too
      preValidation: async request => {
        request.body ??= {}
      },
    },
    async (request, reply) => {
      const { username: name } = request.params
      const apiKey = await users.issueKey(name, request.body, actorOf(request), now())
      await directory.refresh(await users.idOf(name))
      reply.code(201).header('location', `/v1/users/${name}/api-keys/${apiKey.id}`)
      return { apiKey, claudeCode: clientSetup(publicUrl, name, apiKey.key) }
    },
  )

  app.get(
    '/v1/users/:username/api-keys',
    {
      schema: {
        summary: 'List valid API keys',
        tags: ['api keys'],
        params: byName,
        response: { 200: z.object({ apiKeys: z.array(apiKeyView) }) },
      },
    },
    async request => ({ apiKeys: await users.listKeys(request.params.username) }),
  )

  app.post(
    '/v1/users/:username/api-keys/:id/rotate',
    {
      schema: {
        summary: 'Rotate an API key',
        description:
          'Makes a key that takes the place of this one. Both are valid until the deadline (a week, when neither overlapSeconds nor validUntil is given), then the old one ends by itself with its streams. GET .../api-keys tells who used the old one last: time, client and address.',
        tags: ['api keys'],
        params: byKey,
        body: keyRotation,
        response: {
          201: z.object({ apiKey: issuedKey, replaced: apiKeyView, claudeCode: created.shape.claudeCode }),
        },
      },
      preValidation: async request => {
        request.body ??= {}
      },
    },
    async (request, reply) => {
      const { username: name, id } = request.params
      const { userId, apiKey, old } = await users.rotateKey(name, id, request.body, actorOf(request), now())
      await directory.refresh(userId)
      reply.code(201).header('location', `/v1/users/${name}/api-keys/${apiKey.id}`)
      return { apiKey, replaced: old, claudeCode: clientSetup(publicUrl, name, apiKey.key) }
    },
  )

  app.delete(
    '/v1/users/:username/api-keys/:id',
    {
      schema: {
        summary: 'Revoke an API key',
        description: 'Streams and calls that came with this key are ended at once.',
        tags: ['api keys'],
        params: byKey,
        response: { 204: z.null() },
      },
    },
    async (request, reply) => {
      const userId = await users.revokeKey(request.params.username, request.params.id, actorOf(request))
      await directory.refresh(userId)
      return reply.code(204).send(null)
    },
  )

  app.post(
    '/v1/users/:username/authorization',
    {
      schema: {
        summary: 'Authorize the user at Zoho',
        description:
          'Give a grant code of a self client, or a refresh token. What was there before stays in force if Zoho rejects it. `warning`: Zoho accepted it, but ServiceDesk Plus does not know the portal; `detail` says what to change.',
        tags: ['authorization'],
        params: byName,
        body: authorizationMaterial,
        response: {
          200: z.object({
            connection: z.enum(connectionStates),
            scopes: z.array(z.string()),
            warning: z.object({ code: z.string(), detail: z.string() }).nullable(),
          }),
        },
      },
    },
    async request => {
      const report = await connections.authorize(request.params.username, request.body, actorOf(request))
      const { state: connection, scopes, reasonCode: code, reason } = report
      return { connection, scopes, warning: code === null ? null : { code, detail: reason ?? '' } }
    },
  )

  app.post(
    '/v1/users/:username/connect-link',
    {
      schema: {
        summary: 'Make a link by which the person authorizes with one click',
        description:
          'Send it to the person: it works once, for 15 minutes, in one browser. Needs SDP_CONSENT_CLIENT_ID.',
        tags: ['authorization'],
        params: byName,
        response: { 201: z.object({ url: z.string(), expiresAt: z.string() }) },
      },
    },
    async (request, reply) => {
      reply.code(201).header('cache-control', 'no-store')
      return consent.link(request.params.username, actorOf(request))
    },
  )

  app.delete(
    '/v1/users/:username/authorization',
    {
      schema: {
        summary: 'End the authorization at Zoho',
        description:
          'Revokes the grant at Zoho, then erases the tokens. When Zoho cannot be reached nothing is erased, unless `force=true`.',
        tags: ['authorization'],
        params: byName,
        querystring: z.strictObject({ force: z.enum(['true', 'false'], 'must be true or false').default('false') }),
        response: { 204: z.null() },
      },
    },
    async (request, reply) => {
      const { username: name } = request.params
      const atZoho = await connections.deauthorize(name, actorOf(request), { force: request.query.force === 'true' })
      // what the instance holds in memory goes with its process; one of a suspended user does not run
      if (!atZoho && !(await users.get(name)).suspended)
        void fleet
          .reconcile(await users.want(name, 'restart', actorOf(request)))
          .catch(error => request.log.warn({ error }, 'fleet.reconcile.failed'))
      return reply.code(204).send(null)
    },
  )

  for (const action of ['start', 'stop', 'restart'] as const)
    app.post(
      `/v1/users/:username/instance/${action}`,
      {
        schema: {
          summary: `${action[0]!.toUpperCase()}${action.slice(1)} the instance`,
          tags: ['instances'],
          params: byName,
          response: { 202: userView.shape.instance },
        },
      },
      async (request, reply) => {
        const { username: name } = request.params
        const userId = await users.want(name, action, actorOf(request))
        void fleet
          .reconcile(userId, action === 'stop' ? {} : { asked: 'admin' })
          .catch(error => request.log.warn({ error }, 'fleet.reconcile.failed'))
        reply.code(202)
        return (await users.get(name)).instance
      },
    )

  app.get(
    '/v1/users/:username/instance/logs',
    {
      schema: {
        summary: 'Log of the instance, oldest line first',
        tags: ['instances'],
        params: byName,
        querystring: z.strictObject({
          tail: z.coerce
            .number('must be a number')
            .int('must be a whole number')
            .min(1, 'must be at least 1')
            .max(10_000, 'must be at most 10000')
            .default(200),
          follow: z.enum(['true', 'false'], 'must be true or false').default('false'),
        }),
        response: { 200: { content: { 'text/plain': { schema: z.string() } } } },
      },
      // what follows a log for ever has no head
      exposeHeadRoute: false,
    },
    async (request, reply) => {
      // before anything is waited for: who leaves meanwhile would be followed for ever
      const gone = new AbortController()
      followers.add(gone)
      reply.raw.once('close', () => {
        gone.abort()
        followers.delete(gone)
      })
      const { instance } = await users.get(request.params.username)
      if (!instance.containerId)
        throw new AppError(
          'instance-not-found',
          'This user has no container at the moment, so there is no log. Start it: POST .../instance/start.',
        )
      if (gone.signal.aborted) return void reply.hijack()
      const lines = await runtime.logs(instance.containerId, {
        tail: request.query.tail,
        follow: request.query.follow === 'true',
        signal: gone.signal,
      })
      reply.hijack()
      reply.raw.writeHead(200, {
        'content-type': 'text/plain; charset=utf-8',
        'cache-control': 'no-store',
        'x-accel-buffering': 'no',
      })
      reply.raw.flushHeaders()
      await pipeline(Readable.from(lines), reply.raw).catch(error => {
        if (!gone.signal.aborted) request.log.warn({ error }, 'instance.logs.failed')
      })
    },
  )
}

/** Seconds of `Prefer: wait=N` (RFC 7240 section 4.3), at most a minute; undefined when not asked for. */
function preferredWait(header: string | string[] | undefined): number | undefined {
  const asked = /(?:^|[,;\s])wait\s*=\s*"?(\d{1,5})"?/i.exec([header].flat().join(','))?.[1]
  return asked === undefined ? undefined : Math.min(Number(asked), longestWaitSeconds)
}
