import { z } from 'zod'
import type { Rollouts } from '../rollouts.ts'
import { actorOf } from './auth.ts'
import type { App } from './server.ts'

const memberState = z.enum(['waiting', 'moving', 'asleep', 'moved', 'failed', 'reverting', 'reverted'])
const input = z.strictObject({
  image: z
    .string('is required')
    .trim()
    .min(1, 'is required')
    .max(300, 'must have at most 300 characters')
    // it becomes part of an address of the engine's API
    .regex(/^[A-Za-z0-9](?!.*\.\.)[\w./:@-]*$/, 'must be the name of an image, such as registry.example.com/name:tag'),
  batchSize: z.int('must be a whole number').min(1, 'must be at least 1').max(100, 'must be at most 100').default(5),
  maxUnavailable: z.int('must be a whole number').min(0, 'must not be negative').default(0),
  drainSeconds: z
    .int('must be a whole number')
    .min(0, 'must not be negative')
    .max(86_400, 'must be at most 86400')
    .default(300),
  observeSeconds: z
    .int('must be a whole number')
    .min(0, 'must not be negative')
    .max(86_400, 'must be at most 86400')
    .default(30),
  maxErrorRate: z.number('must be a number').min(0, 'must be from 0 to 1').max(1, 'must be from 0 to 1').default(0.05),
})
const view = input.extend({
  id: z.string(),
  state: z.enum(['running', 'paused', 'rolling-back', 'done', 'rolled-back', 'aborted']),
  reasonCode: z.string().nullable(),
  reason: z.string().nullable(),
  createdAt: z.string(),
  finishedAt: z.string().nullable(),
  progress: z.record(memberState, z.number().int()),
  members: z.array(
    z.object({
      username: z.string(),
      state: memberState,
      reason: z.string().nullable(),
      movedAt: z.string().nullable(),
    }),
  ),
})
const byId = z.object({ id: z.uuid('must be the id of a rollout') })

export type RolloutRoutes = { rollouts: Rollouts }

/** Moving everybody to another instance image without a dropped call. */
export function rolloutRoutes(app: App, { rollouts }: RolloutRoutes): void {
  app.post(
    '/v1/rollouts',
    {
      schema: {
        summary: 'Move everybody to another instance image',
        description:
          'One user first, then batches. The first one proves the image, so it is started for that should everybody sleep; others who sleep (`asleep`) take the image with their next start, and the one before should that start fail. Whoever runs gets the new instance beside the old one; it must answer, initialize and list its tools before new sessions go there. Sessions of the old one stay with it until they end, `drainSeconds` at most. After each batch everybody who was moved is watched for `observeSeconds`; when more than `maxUnavailable` have no working instance, the share of failed exchanges passes `maxErrorRate`, or that of failed tool calls passes the one of the week before by as much and more than chance, everybody goes back.',
        tags: ['rollouts'],
        body: input,
        response: { 202: view },
      },
    },
    async (request, reply) => {
      const rollout = await rollouts.create(request.body, actorOf(request))
      return reply.code(202).header('location', `/v1/rollouts/${rollout.id}`).send(rollout)
    },
  )

  app.get(
    '/v1/rollouts',
    {
      schema: {
        summary: 'The latest rollouts, newest first',
        tags: ['rollouts'],
        response: { 200: z.object({ rollouts: z.array(view) }) },
      },
    },
    async () => ({ rollouts: await rollouts.list() }),
  )

  app.get(
    '/v1/rollouts/:id',
    { schema: { summary: 'One rollout', tags: ['rollouts'], params: byId, response: { 200: view } } },
    request => rollouts.get(request.params.id),
  )

  for (const [action, summary] of [
    ['pause', 'Pause a rollout; whoever was moved stays there'],
    ['resume', 'Go on with a paused rollout'],
    ['abort', 'End a rollout; whoever was moved goes back'],
  ] as const)
    app.post(
      `/v1/rollouts/:id/${action}`,
      { schema: { summary, tags: ['rollouts'], params: byId, response: { 200: view } } },
      async request => {
        const changed = await rollouts[action](request.params.id, actorOf(request))
        return changed ?? rollouts.get(request.params.id)
      },
    )
}
