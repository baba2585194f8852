import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { buildServices } from '../services.ts'
import { type Desk, startDesk } from '../testing/desk.ts'
import { isSdpError } from './errors.ts'

let desk: Desk
beforeAll(async () => {
  desk = await startDesk()
})
afterEach(() => desk.simulator.faults.clear())
afterAll(() => desk[Symbol.asyncDispose]())

async function open(user: string, scopes?: string[]) {
  const context = await desk.context(user, scopes ? { scopes } : {})
  const services = buildServices(context)
  let calls = 0
  const sdp = services.client.bind({ signal: new AbortController().signal, onRequest: () => calls++ })
  return { ...services, context, sdp, calls: () => calls }
}

it('a name is found whatever its case, accents and prefix, with one call for all', async () => {
  const { names, sdp, calls } = await open('carol')
  const [high, again] = await Promise.all([
    names.resolve(sdp, 'priority', 'HIGH'),
    names.resolve(sdp, 'priority', ' high '),
  ])
  expect(high).toEqual({ id: expect.stringMatching(/^\d{15,}$/), name: 'High' })
  expect(again).toEqual(high)
  expect(await names.resolve(sdp, 'priority', '1 - high')).toEqual(high)
  expect(await names.resolve(sdp, 'priority', high.id)).toEqual(high)
  expect(calls()).toBe(1)
})

it('a name that does not exist is refused with close matches, and never sent', async () => {
  const { names, sdp } = await open('carol')
  const error = await names.resolve(sdp, 'group', 'Netwrok').catch(reason => reason)
  expect(isSdpError(error, 'invalid-value')).toBe(true)
  expect(error.fields).toEqual(['group'])
  expect(error.details.allowed[0]).toBe('Network')
})

it('a subcategory is looked up under its category', async () => {
  const { names, sdp } = await open('carol')
  const network = await names.resolve(sdp, 'category', 'network')
  expect((await names.resolve(sdp, 'subcategory', 'vpn', { parent: network })).name).toBe('VPN')
  const software = await names.resolve(sdp, 'category', 'software')
  await expect(names.resolve(sdp, 'subcategory', 'vpn', { parent: software })).rejects.toThrow(/under "Software"/)
})

it.each([
  ['without the scope setup', {}, ['SDPOnDemand.requests.ALL']],
  ['where /statuses answers 404', { statusesEndpoint: '404' as const }, undefined],
  ['where /statuses answers 401', { statusesEndpoint: '401' as const }, undefined],
  ['where /statuses is empty', { statusesEndpoint: 'empty' as const }, undefined],
  ['where the list has another key', { statusesListKey: 'status' as const }, undefined],
])('values are found %s, and no token is burnt', async (_case, switches, scopes) => {
  desk.simulator.faults.set(switches)
  const { names, sdp, context } = await open('alice', scopes)
  expect((await names.resolve(sdp, 'status', 'on hold')).name).toBe('On Hold')
  expect((await names.resolve(sdp, 'priority', 'low')).name).toBe('Low')
  expect(context.tokens.invalidated).toBe(0)
})

it.each(['groups', 'support_groups'] as const)('groups are found where only /%s exists', async groupsEndpoint => {
  desk.simulator.faults.set({ groupsEndpoint })
  const { names, sdp } = await open('carol')
  expect((await names.resolve(sdp, 'group', 'network')).name).toBe('Network')
})

it('a cached list is read again when it has grown old', async () => {
  let now = Date.now()
  const context = { ...(await desk.context('carol')), now: () => now }
  const { names, client } = buildServices(context)
  let calls = 0
  const sdp = client.bind({ signal: new AbortController().signal, onRequest: () => calls++ })
  await names.options(sdp, 'priority')
  now += 9 * 60_000
  await names.options(sdp, 'priority')
  expect(calls).toBe(1)
  now += 2 * 60_000
  await names.options(sdp, 'priority')
  expect(calls).toBe(2)
})

it('one caller who gives up does not take the list away from another', async () => {
  const { names, client } = await open('carol')
  desk.simulator.faults.add({ kind: 'delay', delayMs: 200, match: { path: '/modes' }, count: 1 })
  const controller = new AbortController()
  const first = names.options(client.bind({ signal: controller.signal }), 'mode')
  const second = names.options(client.bind({ signal: new AbortController().signal }), 'mode')
  controller.abort()
  await expect(first).rejects.toThrow(/cancelled/)
  expect((await second).options.length).toBeGreaterThan(1)
})

it('people are found by me, e-mail, whole name and unmistakable part of it', async () => {
  const { people, sdp } = await open('carol')
  const me = await people.resolve(sdp, 'me', 'technician', 'technician')
  expect(me.person).toMatchObject({ name: 'Carol Jensen', isTechnician: true })
  for (const who of ['bob@northwind.example', 'Bob Okafor', 'bob okafor', 'BOB']) {
    expect((await people.resolve(sdp, who, 'technician', 'technician')).person.name).toBe('Bob Okafor')
  }
  const error = await people.resolve(sdp, 'Bob Okafo', 'technician', 'technician').catch(reason => reason)
  expect(error.details.allowed).toContain('Bob Okafor <bob@northwind.example>')
})

/** Adds technicians of these names. */
function hire(...people: string[]): void {
  const users = desk.simulator.state.portals[0]?.tables.users ?? {}
  const bob = Object.values(users).find(({ name }) => name === 'Bob Okafor')
  for (const [index, name] of people.entries()) {
    const id = `1000000000000${Object.keys(users).length + index}`
    users[id] = { ...bob, id, name, email_id: `${name.replace(/\W/g, '-')}@northwind.example`.toLowerCase() } as never
  }
}

it('people whose names differ by an initial or a dot are told apart, also by what is remembered', async () => {
  hire('J. Qvist', 'A. Qvist', 'quinn.doe', 'quinn_doe', 'Quinn Doe')
  const { people, sdp, calls } = await open('carol')
  const resolve = async (who: string) => (await people.resolve(sdp, who, 'technician', 'technician')).person.name
  for (const who of ['J. Qvist', 'A. Qvist', 'quinn.doe', 'quinn_doe', 'Quinn Doe']) {
    expect(await resolve(who)).toBe(who)
    const before = calls()
    expect(await resolve(` ${who.toUpperCase()} `)).toBe(who)
    expect(calls()).toBe(before)
  }
  const error = await resolve('Qvist').catch(reason => reason)
  expect(error.message).toMatch(/fits several people/)
  expect(error.details.allowed).toHaveLength(2)
  await expect(resolve('B. Qvist')).rejects.toThrow(/Nobody called/)
})

it.each([
  ['a smith', ['A. Smith']],
  ['A. Smith', ['A. Smith']],
  ['SMITH', ['A. Smith', 'J. Smith', 'Zoë Smith-Jones']],
  ['Zoe Smith-Jones', ['Zoë Smith-Jones']],
  ['jones', ['Zoë Smith-Jones']],
  ['Zoe Smith Jones', []],
  ['Smi', []],
  ['.', []],
])('among people whom a site offers for it, "%s" is one, or told to be several', async (who, expected) => {
  const { people, sdp: real } = await open('carol')
  const staff = ['A. Smith', 'J. Smith', 'Zoë Smith-Jones'].map((name, index) => ({ id: `${index + 1}`, name }))
  // offers everybody, as a site may that searches loosely
  const list = async () => ({ rows: staff, hasMore: false, total: undefined, startIndex: 1 })
  const found = await people.resolve({ ...real, list }, who, 'technician', 'technician').then(
    ({ person }) => [person.name],
    error => (error.message.includes('several') ? error.details.allowed : []),
  )
  expect(found).toEqual(expected)
})

it('addresses that differ by a hyphen or an underscore are two people', async () => {
  const { people, sdp } = await open('carol')
  hire('pat-roe', 'pat_roe')
  for (const name of ['pat-roe', 'pat_roe']) {
    const found = await people.resolve(sdp, `${name}@northwind.example`, 'technician', 'technician')
    expect(found).toMatchObject({ person: { name }, reference: { id: expect.any(String) } })
  }
})

it('a list too long to read whole is searched anew for another spelling', async () => {
  const searched: string[] = []
  const rows = ['A. North', 'North'].map((name, index) => ({ id: `${index + 1}`, name }))
  const { names, sdp: real } = await open('carol')
  const sdp = {
    ...real,
    async list(_path: unknown, info: { search_criteria?: unknown }) {
      const value = /"value":"([^"]+)"/.exec(JSON.stringify(info.search_criteria ?? ''))?.[1]
      if (value) searched.push(value)
      const found = value ? rows.filter(({ name }) => name.includes(value)) : [{ id: '9', name: 'South' }]
      return { rows: found, hasMore: !value, total: undefined, startIndex: 1 }
    },
  } as unknown as typeof real
  expect(await names.resolve(sdp, 'site', 'A. North')).toEqual({ id: '1', name: 'A. North' })
  expect(await names.resolve(sdp, 'site', 'North ')).toEqual({ id: '2', name: 'North' })
  expect(searched).toEqual(['A. North', 'North'])
})

it.each([
  ['401', 'ok'],
  ['404', '404'],
  ['401', '401'],
] as const)(
  'technicians are found where /technicians answers %s and /users %s',
  async (techniciansEndpoint, usersEndpoint) => {
    desk.simulator.faults.set({ techniciansEndpoint, usersEndpoint })
    const { people, sdp } = await open('carol')
    expect((await people.resolve(sdp, 'alice@northwind.example', 'technician', 'technician')).person.name).toBe(
      'Alice Moreau',
    )
    expect((await people.resolve(sdp, 'Alice Moreau', 'technician', 'technician')).reference).toHaveProperty('id')
  },
)

it('people of any kind are found with no other scope than requests', async () => {
  const { people, sdp, context } = await open('alice', ['SDPOnDemand.requests.ALL'])
  const found = await people.find(sdp, 'Ana Ferreira', { kind: 'any' })
  expect(found.map(({ name }) => name)).toContain('Ana Ferreira')
  expect((await people.resolve(sdp, 'bob okafor', 'technician', 'technician')).reference).toHaveProperty('id')
  expect(context.tokens.invalidated).toBe(0)
})

it('an address nobody here knows is left to SDP, a name is not', async () => {
  const { people, sdp } = await open('carol')
  const { reference } = await people.resolve(sdp, 'new@northwind.example', 'requester', 'requester')
  expect(reference).toEqual({ email_id: 'new@northwind.example' })
  await expect(people.resolve(sdp, 'Zzyzx Qwop', 'requester', 'requester')).rejects.toThrow(/Nobody called/)
})
