import { afterEach, beforeEach, expect, inject, test } from 'vitest'
import { eventually } from './fleet/testing/support.ts'
import { type Admin, openAdmin } from './testing/admin.ts'

let admin: Admin
let first: string
beforeEach(async () => {
  admin = await openAdmin(inject('postgres'), { SDP_INSTANCE_IMAGE: 'img:1' })
  admin.rollouts.start()
  for (const username of ['ann', 'bob', 'cem', 'dan']) {
    expect((await admin.call('POST', '/v1/users', { username, sdp: { portal: 'itdesk' } })).status).toBe(201)
    await eventually(`${username} is ready`, async () => (await instanceOf(username)).state === 'ready')
  }
  first = (await instanceOf('ann')).containerId
})
afterEach(() => admin?.[Symbol.asyncDispose]())

const instanceOf = async (username: string) => (await admin.call('GET', `/v1/users/${username}`)).json.instance
const imagesRunning = () =>
  [...admin.engine.instances.values()]
    .filter(({ observed }) => observed.running)
    .map(({ observed }) => observed.image)
    .sort()
const quick = { image: 'img:2', batchSize: 2, drainSeconds: 0, observeSeconds: 0 }
const begin = async (part: object = {}) => {
  const { status, json } = await admin.call('POST', '/v1/rollouts', { ...quick, ...part })
  expect(status).toBe(202)
  return json.id as string
}
const get = async (id: string) => (await admin.call('GET', `/v1/rollouts/${id}`)).json
const reaches = (id: string, state: string) =>
  eventually(`it is ${state}`, async () => (await get(id)).state === state && get(id), 15_000)

test('everybody is moved, the canary first, and whoever comes later starts with the new image', async () => {
  const id = await begin()
  const done = await reaches(id, 'done')
  expect(done.progress).toMatchObject({ moved: 4, waiting: 0, failed: 0 })
  const times = done.members.map((member: { movedAt: string }) => Date.parse(member.movedAt))
  expect(Math.min(...times.slice(1))).toBeGreaterThan(times[0])
  await eventually('the old ones are gone', () => imagesRunning().join() === 'img:2,img:2,img:2,img:2')
  expect((await instanceOf('ann')).containerId).not.toBe(first)
  expect(await admin.db.query('select from image_pins')).toEqual([])
  await admin.call('POST', '/v1/users', { username: 'eve', sdp: { portal: 'itdesk' } })
  await eventually('eve is ready', async () => (await instanceOf('eve')).image === 'img:2')
  const actions = await admin.db.query<{ action: string }>(
    "select action from audit_events where action like 'rollout.%' order by id",
  )
  expect(actions.map(({ action }) => action)).toEqual(['rollout.created', 'rollout.done'])
})

test('a canary that cannot be started takes everything back, and the reason is told', async () => {
  admin.engine.trouble.push('image-missing')
  const id = await begin()
  const over = await reaches(id, 'rolled-back')
  expect(over).toMatchObject({ reasonCode: 'members-failed', progress: { reverted: 1, waiting: 3 } })
  expect(over.members[0]).toMatchObject({ username: 'ann', state: 'reverted' })
  expect(imagesRunning()).toEqual(['img:1', 'img:1', 'img:1', 'img:1'])
  expect((await instanceOf('ann')).containerId).toBe(first)
  expect(await admin.db.query('select from instance_moves')).toEqual([])
  expect(await admin.db.query('select from image_pins')).toEqual([])
})

test('one that breaks after its move takes those back who were moved', async () => {
  const id = await begin({ observeSeconds: 3 })
  await eventually('the canary is moved', async () => (await get(id)).progress.moved === 1)
  const [ann] = await admin.db.query<{ id: string }>("select id from users where username = 'ann'")
  await admin.engine.crash(ann!.id, { code: 1 })
  admin.engine.trouble.push({ exit: 1 }, { exit: 1 }, { exit: 1 }, { exit: 1 }, { exit: 1 }, { exit: 1 })
  const over = await reaches(id, 'rolled-back')
  admin.engine.trouble.length = 0
  expect(over.reasonCode).toBe('members-failed')
  await eventually(
    'ann is back',
    async () => {
      const instance = await instanceOf('ann')
      return instance.state === 'ready' && instance.image === 'img:1'
    },
    20_000,
  )
}, 60_000)

test('one that is aborted goes back to the very instance that was there, while its sessions still are', async () => {
  const [ann] = await admin.db.query<{ id: string }>("select id from users where username = 'ann'")
  admin.engine.running(ann!.id)[0]!.sessions = 1
  const id = await begin({ observeSeconds: 600, drainSeconds: 600 })
  await eventually('the canary is moved', async () => (await get(id)).progress.moved === 1)
  expect((await instanceOf('ann')).containerId).not.toBe(first)
  expect((await admin.call('POST', `/v1/rollouts/${id}/abort`)).status).toBe(200)
  await reaches(id, 'aborted')
  expect(await instanceOf('ann')).toMatchObject({ containerId: first, image: 'img:1', state: 'ready' })
  await eventually('the new one is gone', () => imagesRunning().join() === 'img:1,img:1,img:1,img:1')
  expect((await admin.call('POST', `/v1/rollouts/${id}/abort`)).json.code).toBe('rollout-finished')
  // and the user can be changed as ever
  await admin.call('PATCH', '/v1/users/ann', { readOnly: true })
  await eventually('replaced', async () => {
    const instance = await instanceOf('ann')
    return instance.state === 'ready' && instance.containerId !== first
  })
})

test('a pause holds it, and there is one at a time', async () => {
  const id = await begin({ observeSeconds: 2 })
  expect((await admin.call('POST', `/v1/rollouts/${id}/pause`)).json.state).toBe('paused')
  const { progress } = await get(id)
  await new Promise(done => setTimeout(done, 3_500))
  const later = await get(id)
  expect(later.state).toBe('paused')
  expect(later.progress.waiting).toBeGreaterThanOrEqual(3)
  expect(later.progress.waiting).toBeLessThanOrEqual(progress.waiting)
  const second = await admin.call('POST', '/v1/rollouts', quick)
  expect([second.status, second.json.code]).toEqual([409, 'rollout-active'])
  await admin.call('POST', `/v1/rollouts/${id}/resume`)
  await reaches(id, 'done')
  expect((await admin.call('POST', `/v1/rollouts/${id}/resume`)).json.code).toBe('rollout-finished')
  expect((await admin.call('GET', '/v1/rollouts')).json.rollouts.map((one: { id: string }) => one.id)).toEqual([id])
}, 40_000)

test('those who sleep take the new image with their next start', async () => {
  const [bob] = await admin.db.query<{ id: string }>("select id from users where username = 'bob'")
  expect(await admin.fleet.sleep(bob!.id)).toBe(true)
  const id = await begin()
  const done = await reaches(id, 'done')
  expect(done.members.find((one: { username: string }) => one.username === 'bob').reason).toContain('next start')
  await admin.fleet.ensureReady(bob!.id, { timeoutMs: 8_000 })
  expect((await instanceOf('bob')).image).toBe('img:2')
})
