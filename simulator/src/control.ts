import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { z } from 'zod'
import {
  AccountsError,
  createGrantCode,
  expireAccessTokens,
  revokeRefreshTokens,
  selfClientOf,
} from './accounts/accounts.ts'
import { callerIn } from './api/permissions.ts'
import { FaultRule } from './faults/faults.ts'
import { type SwitchValues, switches } from './faults/switches.ts'
import { addPerson, NewPerson } from './seed/people.ts'
import { rowById, rowsOf } from './state.ts'
import type { World } from './world.ts'

/** What the control API can do beyond the world. */
export interface Control {
  /** Back to the seeded state: no tokens, no faults, an empty log. */
  reset(): void
}

const GrantCodeWish = z.strictObject({
  user: z.string(),
  scopes: z.union([z.array(z.string()), z.string().transform(text => text.split(/[,\s]+/))]).optional(),
  clientId: z.string().optional(),
  expiresInSeconds: z.number().positive().optional(),
})
const FaultWish = z.strictObject({
  switches: z.record(z.string(), z.unknown()).optional(),
  rules: z.array(FaultRule).optional(),
})
const WhoWish = z.strictObject({ user: z.string().optional() })
const ClientWish = z.strictObject({ redirectUris: z.array(z.url()) })

function bodyOf(request: FastifyRequest): unknown {
  const text = Buffer.isBuffer(request.body) ? request.body.toString('utf8') : ''
  return text.trim() === '' ? {} : JSON.parse(text)
}

/** The control API under `/_sim/`, for tests and evaluation: JSON in and out, no authentication, never in production. */
export function controlRoutes(app: FastifyInstance, world: World, control: Control): void {
  app.setErrorHandler(async (error: Error, _request, reply: FastifyReply) => {
    const isThrottle = error instanceof AccountsError && error.code === 'Access Denied'
    const message = error instanceof z.ZodError ? z.prettifyError(error) : error.message
    return reply.status(isThrottle ? 429 : 400).send({ error: message })
  })

  app.get('/_sim/', async () => help)
  app.post('/_sim/grant-codes', async request => createGrantCode(world, GrantCodeWish.parse(bodyOf(request))))

  app.get('/_sim/users', async () => ({ users: describeUsers(world) }))
  app.post('/_sim/users', async (request, reply) => {
    const person = addPerson(world, NewPerson.parse(bodyOf(request)))
    return reply.status(201).send(describeUsers(world).find(one => one.username === person.username))
  })

  app.get('/_sim/clients', async () => ({ clients: world.state.clients }))
  app.put('/_sim/clients/:clientId', async (request, reply) => {
    const { clientId } = request.params as { clientId: string }
    const client = world.state.clients.find(one => one.clientId === clientId)
    if (!client) return reply.status(404).send({ error: `There is no client ${clientId}.` })
    client.redirectUris = ClientWish.parse(bodyOf(request)).redirectUris
    world.changed()
    return client
  })

  app.get('/_sim/state', async () => world.state)
  app.get('/_sim/summary', async () => summarize(world))
  app.get('/_sim/log', async request => {
    const { since } = request.query as { since?: string }
    return { entries: world.log.list(Number(since ?? 0) || 0) }
  })
  app.delete('/_sim/log', async (_request, reply) => {
    world.log.clear()
    return reply.status(204).send()
  })

  app.get('/_sim/faults', async () => ({
    switches: world.faults.switches,
    rules: world.faults.list(),
    about: Object.fromEntries(Object.entries(switches).map(([name, one]) => [name, one.about])),
  }))
  app.post('/_sim/faults', async (request, reply) => {
    const wish = FaultWish.parse(bodyOf(request))
    world.faults.set((wish.switches ?? {}) as Partial<SwitchValues>)
    const ids = (wish.rules ?? []).map(rule => world.faults.add(rule))
    return reply.status(201).send({ ids, switches: world.faults.switches })
  })
  app.delete('/_sim/faults', async (_request, reply) => {
    world.faults.clear()
    return reply.status(204).send()
  })
  app.delete('/_sim/faults/:id', async (request, reply) => {
    const { id } = request.params as { id: string }
    return reply.status(world.faults.remove(id) ? 204 : 404).send()
  })

  app.post('/_sim/expire-access-tokens', async request => ({
    expired: expireAccessTokens(world, WhoWish.parse(bodyOf(request)).user),
  }))
  app.post('/_sim/revoke-refresh-tokens', async request => ({
    revoked: revokeRefreshTokens(world, WhoWish.parse(bodyOf(request)).user),
  }))

  app.post('/_sim/reset', async (_request, reply) => {
    control.reset()
    return reply.status(204).send()
  })
}

function describeUsers(world: World) {
  return world.state.people.map(person => {
    const client = selfClientOf(world, person.username)
    return {
      username: person.username,
      email: person.email,
      name: person.name,
      clientId: client?.clientId ?? null,
      clientSecret: client?.clientSecret ?? null,
      portals: world.state.portals.flatMap(portal => {
        const caller = callerIn(portal, person.email)
        if (!caller) return []
        const role = rowById(portal, 'roles', (caller.row.roles as string[] | undefined)?.[0])
        return {
          portal: portal.name,
          id: caller.row.id,
          isTechnician: caller.isTechnician,
          role: role?.name ?? null,
          view: caller.isTechnician ? caller.view : 'own',
          groups: caller.groupIds.map(id => rowById(portal, 'support_groups', id)?.name),
        }
      }),
    }
  })
}

/** How many of what there are. */
function summarize(world: World) {
  const { state } = world
  const now = world.now()
  return {
    portals: state.portals.map(portal => ({
      name: portal.name,
      records: Object.fromEntries(Object.keys(portal.tables).map(table => [table, rowsOf(portal, table).length])),
    })),
    people: state.people.length,
    refreshTokens: state.refreshTokens.length,
    accessTokens: state.accessTokens.filter(one => one.expiresAt > now).length,
  }
}

/** What `GET /_sim/` says. */
const help = {
  about: 'Stand-in for Zoho Accounts and ServiceDesk Plus Cloud. For tests and evaluation only.',
  calls: {
    'POST /_sim/grant-codes':
      '{"user","scopes"?,"clientId"?,"expiresInSeconds"?} -> {"code","clientId","clientSecret","expiresAt","scopes"}',
    'GET /_sim/users': 'people with their self client, role and groups',
    'POST /_sim/users': '{"username","name"?,"email"?,"role"?,"groups"?,"portal"?} adds a person',
    'GET /_sim/clients': 'OAuth clients',
    'PUT /_sim/clients/{clientId}': '{"redirectUris":[...]}',
    'GET /_sim/state': 'everything that is kept, tokens included',
    'GET /_sim/summary': 'counts',
    'GET /_sim/log?since=N': 'exchanges after number N; DELETE empties it',
    'GET /_sim/faults': 'switches with their meaning, and rules',
    'POST /_sim/faults': '{"switches"?:{...},"rules"?:[...]} -> {"ids","switches"}',
    'DELETE /_sim/faults': 'everything back to normal; DELETE /_sim/faults/{id} removes one rule',
    'POST /_sim/expire-access-tokens': '{"user"?}',
    'POST /_sim/revoke-refresh-tokens': '{"user"?}',
    'POST /_sim/reset': 'back to the seeded desk',
  },
}
