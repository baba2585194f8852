import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, expect, inject, test } from 'vitest'
import { eventually } from './fleet/testing/support.ts'
import { type Admin, openAdmin } from './testing/admin.ts'

let admin: Admin
let first: string
beforeEach(async () => {
  admin = await openAdmin(inject('postgres'), { SDP_INSTANCE_IMAGE: 'img:1' })
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

const idOf = async (username: string) =>
  (await admin.db.query<{ id: string }>('select id from users where username = $1', [username]))[0]!.id
const memberOf = async (id: string, username: string) =>
  (await get(id)).members.find((one: { username: string }) => one.username === username)
const sleep = async (...usernames: string[]) => {
  for (const username of usernames) expect(await admin.fleet.sleep(await idOf(username))).toBe(true)
}

test('those who sleep take the new image with their next start, and count as moved from then on', async () => {
  await sleep('bob')
  const id = await begin({ observeSeconds: 1 })
  const done = await reaches(id, 'done')
  expect(done.progress).toMatchObject({ moved: 3, asleep: 1 })
  expect(await memberOf(id, 'bob')).toMatchObject({ state: 'asleep', reason: expect.stringContaining('next start') })
  await admin.fleet.ensureReady(await idOf('bob'), { timeoutMs: 8_000 })
  expect((await instanceOf('bob')).image).toBe('img:2')
})

test('an image the engine does not have is refused, and nothing changes', async () => {
  admin.engine.missingImages.add('typo:1')
  const refused = await admin.call('POST', '/v1/rollouts', { image: 'typo:1' })
  expect([refused.status, refused.json.code]).toEqual([422, 'rollout-image-missing'])
  for (const image of ['a image', '../x', 'a/../../containers', 'img:1?x=y', '-x'])
    expect((await admin.call('POST', '/v1/rollouts', { image })).json.code).toBe('request-invalid')
  expect(await admin.db.query('select from rollouts')).toEqual([])
})

test('when everybody sleeps, one is woken to prove the image; one that proves nothing never becomes the default', async () => {
  await sleep('ann', 'bob', 'cem', 'dan')
  admin.engine.trouble.push({ exit: 1 }, { exit: 1 }, { exit: 1 })
  const over = await reaches(await begin(), 'rolled-back')
  expect(over).toMatchObject({ reasonCode: 'members-failed', progress: { moved: 0, waiting: 3, reverted: 1 } })
  expect(await admin.db.query('select from default_image')).toEqual([])
  admin.engine.trouble.length = 0
  await admin.fleet.ensureReady(await idOf('bob'), { timeoutMs: 8_000 })
  expect((await instanceOf('bob')).image).toBe('img:1')

  await sleep('bob')
  const done = await reaches(await begin(), 'done')
  expect(done.progress.moved).toBeGreaterThanOrEqual(1)
  expect(imagesRunning()).toContain('img:2')
}, 40_000)

test('one who sleeps and whose first start with the new image fails has the image of before at once', async () => {
  await sleep('bob')
  const id = await begin()
  await reaches(id, 'done')
  admin.engine.trouble.push({ exit: 1 })
  // one wait of a client: it never sees the failure
  await admin.fleet.ensureReady(await idOf('bob'), { timeoutMs: 8_000 })
  expect(await instanceOf('bob')).toMatchObject({ state: 'ready', image: 'img:1' })
  expect(await memberOf(id, 'bob')).toMatchObject({ state: 'failed', reason: expect.stringContaining('first start') })
  // and it stays there
  await sleep('bob')
  await admin.fleet.ensureReady(await idOf('bob'), { timeoutMs: 8_000 })
  expect((await instanceOf('bob')).image).toBe('img:1')
})

test('one who is just starting is moved when it runs, not left behind', async () => {
  await sleep('bob')
  admin.engine.bootMs = 2_500
  const bob = await idOf('bob')
  const waking = admin.fleet.ensureReady(bob, { timeoutMs: 8_000 })
  await eventually('bob starts', async () => (await instanceOf('bob')).state === 'starting')
  admin.engine.running(bob)[0]!.sessions = 1
  admin.engine.bootMs = 0
  const id = await begin({ batchSize: 10 })
  await waking
  const done = await reaches(id, 'done')
  expect(done.progress).toMatchObject({ moved: 4, asleep: 0 })
  expect((await instanceOf('bob')).image).toBe('img:2')
})

test('one who fails already is no reason to go back, and takes the new image with the next try', async () => {
  const bob = await idOf('bob')
  admin.engine.trouble.push({ exit: 1 }, { exit: 1 }, { exit: 1 })
  await admin.engine.crash(bob, { code: 1 })
  await eventually(
    'bob fails for a while',
    async () => (await admin.db.query('select from instances where user_id = $1 and failures = 4', [bob])).length > 0,
  )
  const id = await begin({ batchSize: 10 })
  const done = await reaches(id, 'done')
  expect(done.progress).toMatchObject({ moved: 3, asleep: 1, failed: 0 })
  await eventually('bob works', async () => (await instanceOf('bob')).state === 'ready', 20_000)
  expect((await instanceOf('bob')).image).toBe('img:2')
}, 40_000)

test('an image whose tools fail, while every exchange is fine, goes back by itself', async () => {
  const day = new Date().toISOString().slice(0, 10)
  const epochs = new Map<string, string>()
  let calls = 30
  admin.counted.usage = image => {
    if (!epochs.has(image)) epochs.set(image, randomUUID())
    const errors = image === 'img:2' ? calls : 2
    const row = { day, tool: 'search_requests', calls, errors, totalMs: 1, maxMs: 1, buckets: [] }
    return { epoch: epochs.get(image)!, tools: [row], upstream: [], tokens: null }
  }
  const id = await begin({ observeSeconds: 600 })
  const over = await reaches(id, 'rolled-back')
  expect(over).toMatchObject({ reasonCode: 'error-rate', reason: expect.stringContaining('30 of 30 tool calls') })
  expect(imagesRunning()).not.toContain('img:2')
  expect((await instanceOf('bob')).image).toBe('img:1')
  // another attempt with the same image is measured by what it does itself
  epochs.clear()
  calls = 4
  const again = await begin({ observeSeconds: 2, batchSize: 10 })
  await reaches(again, 'done')
}, 60_000)

test('a control plane that ends gives up its moves at once, and its successor goes on', async () => {
  // the canary goes through, then everybody else hangs
  const id = await begin({ batchSize: 100, observeSeconds: 1 })
  await eventually('the canary is moved', async () => (await get(id)).progress.moved === 1)
  admin.engine.trouble.push('mute', 'mute', 'mute')
  await eventually('the others are being moved', async () => (await get(id)).progress.moving === 3)
  await eventually('they hang', () => admin.engine.trouble.length === 0)
  const began = performance.now()
  await admin.rollouts.close()
  // it was the whole time that instances get for a start: 60 s
  expect(performance.now() - began).toBeLessThan(8_000)
  expect(await get(id)).toMatchObject({ state: 'running', progress: { moving: 3, failed: 0, moved: 1 } })
  expect(await admin.db.query("select from instance_moves where phase = 'preparing'")).toEqual([])
  expect(imagesRunning().filter(image => image === 'img:2')).toHaveLength(1)
  const successor = admin.anotherRollouts()
  successor.start()
  await reaches(id, 'done')
  await successor.close()
  expect(imagesRunning()).not.toContain('img:1')
}, 40_000)

test('nobody to prove the image: refused', async () => {
  for (const username of ['ann', 'bob', 'cem', 'dan'])
    await admin.call('PATCH', `/v1/users/${username}`, { suspended: true })
  const refused = await admin.call('POST', '/v1/rollouts', quick)
  expect([refused.status, refused.json.code]).toEqual([422, 'rollout-canary-missing'])
  expect(await admin.db.query('select from rollouts')).toEqual([])
})
