import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Desk, everyScope, type Session, startDesk } from '../../testing/desk.ts'

let desk: Desk
let carol: Session
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
})
afterAll(() => desk[Symbol.asyncDispose]())

it('finds by part of the name, by e-mail and by me', async () => {
  const { people } = await carol.ok('find_people', { query: 'fer', open_tickets: true })
  expect(people).toContainEqual(
    expect.objectContaining({
      name: 'Ana Ferreira',
      email: 'ana.ferreira@northwind.example',
      vip: true,
      site: 'Lyon',
      open_tickets: expect.any(Number),
    }),
  )
  expect((await carol.ok('find_people', { query: 'alice@northwind.example' })).people[0]).toMatchObject({
    name: 'Alice Moreau',
    technician: true,
  })
  expect((await carol.ok('find_people', { query: 'me' })).people[0].name).toBe('Carol Jensen')
})

it('narrows by kind, group and department', async () => {
  const technicians = (await carol.ok('find_people', { query: 'a', kind: 'technician' })).people
  expect(technicians.every((person: { technician?: boolean }) => person.technician)).toBe(true)
  const network = (await carol.ok('find_people', { query: 'a', kind: 'technician', group: 'Network' })).people
  expect(network.map(({ name }: { name: string }) => name)).toEqual(['Alice Moreau'])
  const finance = (await carol.ok('find_people', { query: 'a', kind: 'requester', department: 'Finance' })).people
  expect(finance.length).toBeGreaterThan(0)
  for (const { department } of finance) expect(department).toBe('Finance')
})

it('an unknown name is an empty list with a hint', async () => {
  expect(await carol.ok('find_people', { query: 'zzyzx' })).toEqual({ people: [], hint: expect.any(String) })
})

it('without an address here, "me" is whom Zoho names; when Zoho does not say, the person hears what to do', async () => {
  const context = await desk.context('dave', { scopes: [...everyScope, 'AaaServer.profile.READ'] })
  context.user.email = null
  const dave = await desk.connect(context)
  const spoilt = [
    { kind: 'drop' },
    { kind: 'drop-midway' },
    { kind: 'not-json' },
    { kind: 'status', status: 503 },
    { kind: 'status', status: 429 },
  ] as const
  for (const fault of spoilt) {
    const id = desk.simulator.faults.add({ ...fault, match: { path: '/oauth/user/info' } })
    const told = await dave.fails('find_people', { query: 'me' })
    expect([fault, told]).toEqual([fault, expect.stringMatching(/did not say who you are[\s\S]*by e-mail or name/)])
    desk.simulator.faults.remove(id)
  }
  // without the right to ask, waiting helps nobody
  const id = desk.simulator.faults.add({ kind: 'status', status: 401, match: { path: '/oauth/user/info' } })
  expect(await dave.fails('find_people', { query: 'me' })).toContain('AaaServer.profile.READ')
  desk.simulator.faults.remove(id)
  expect((await dave.ok('find_people', { query: 'me' })).people[0].email).toMatch(/^dave\b/)
})
