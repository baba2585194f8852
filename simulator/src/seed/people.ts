import { z } from 'zod'
import {
  insert,
  nextId,
  type OauthClient,
  type Person,
  type Portal,
  rowsOf,
  type State,
  type StoredRecord,
  stableHex,
} from '../state.ts'
import type { World } from '../world.ts'
import { idOf } from './lookups.ts'

/** A person to add, by the seed or through the control API. */
export const NewPerson = z.strictObject({
  username: z.string().regex(/^[a-z][a-z0-9-]{0,40}$/),
  name: z.string().optional(),
  email: z.email().optional(),
  portal: z.string().default('itdesk'),
  /** A role of the portal; `Requester` makes somebody who is no technician. */
  role: z.string().default('Group Technician'),
  groups: z.array(z.string()).default([]),
  site: z.string().default('Rotterdam'),
  department: z.string().default('IT Services'),
  jobTitle: z.string().default('IT Technician'),
  isVip: z.boolean().default(false),
})
export type NewPerson = z.input<typeof NewPerson>

/** The seeded Zoho accounts. alice and bob share no ticket; carol administers both portals; grace works in HR. */
const accounts: NewPerson[] = [
  { username: 'alice', name: 'Alice Moreau', groups: ['Network'], jobTitle: 'Network Engineer' },
  { username: 'bob', name: 'Bob Okafor', groups: ['Desktop Support'], jobTitle: 'Desktop Support Technician' },
  {
    username: 'carol',
    name: 'Carol Jensen',
    role: 'SDAdmin',
    groups: ['Service Desk'],
    jobTitle: 'Service Desk Manager',
  },
  {
    username: 'dave',
    name: 'Dave Lindqvist',
    role: 'Own Tickets Technician',
    groups: ['Applications'],
    jobTitle: 'Junior Technician',
    site: 'Lyon',
  },
  { username: 'erin', name: 'Erin Castellano', groups: ['Security'], jobTitle: 'Security Analyst', site: 'Boston' },
  {
    username: 'frank',
    name: 'Frank Adeyemi',
    role: 'SDCoordinator',
    groups: ['Service Desk', 'Applications'],
    jobTitle: 'Dispatcher',
  },
  {
    username: 'grace',
    name: 'Grace Nakamura',
    portal: 'hrdesk',
    groups: ['HR Operations', 'Payroll'],
    jobTitle: 'HR Partner',
    department: 'Human Resources',
  },
  { username: 'heidi', name: 'Heidi Brandt', role: 'Requester', department: 'Finance', jobTitle: 'Accountant' },
]

/** Requesters without a Zoho account of their own here. */
const requesters: [name: string, department: string, site: string, title: string, vip?: boolean][] = [
  ['Ana Ferreira', 'Finance', 'Lyon', 'Chief Financial Officer', true],
  ['Ben Whitaker', 'Sales', 'Boston', 'Account Executive'],
  ['Chloe Dubois', 'Engineering', 'Lyon', 'Mechanical Engineer'],
  ['Daniel Koch', 'Production', 'Rotterdam', 'Shift Lead'],
  ['Elif Yilmaz', 'Engineering', 'Rotterdam', 'Firmware Developer'],
  ['Farid Haddad', 'Sales', 'Lyon', 'Regional Manager'],
  ['Greta Olsen', 'Human Resources', 'Rotterdam', 'Recruiter'],
  ['Hugo Martins', 'Production', 'Rotterdam', 'Robot Operator'],
  ['Iris van Dijk', 'Engineering', 'Rotterdam', 'Test Engineer'],
  ['Jonas Weber', 'Finance', 'Rotterdam', 'Controller'],
  ['Keiko Tanaka', 'Engineering', 'Boston', 'Vision Scientist'],
  ['Liam Byrne', 'Sales', 'Boston', 'Inside Sales'],
  ['Maya Shah', 'Engineering', 'Boston', 'Engineering Director', true],
  ['Nadia Petrova', 'Finance', 'Lyon', 'Payables Clerk'],
  ['Oscar Nilsson', 'Production', 'Lyon', 'Maintenance Planner'],
  ['Paula Gomez', 'Human Resources', 'Lyon', 'HR Assistant'],
  ['Quentin Roux', 'Engineering', 'Lyon', 'CAD Designer'],
  ['Rosa Bianchi', 'Sales', 'Rotterdam', 'Customer Success'],
  ['Samir Patel', 'Engineering', 'Boston', 'Data Engineer'],
  ['Tessa de Boer', 'Production', 'Rotterdam', 'Warehouse Clerk'],
]

const domain = 'northwind.example'

function personFrom({ username, name, email }: NewPerson, number: number): Person {
  const fullName = name ?? username.charAt(0).toUpperCase() + username.slice(1)
  const [firstName = fullName, ...last] = fullName.split(' ')
  return {
    username,
    zuid: String(60_000_000_000 + number),
    email: email ?? `${username}@${domain}`,
    name: fullName,
    firstName,
    lastName: last.join(' '),
  }
}

/** A self client of the developer console: id and secret are the same after every seed. */
function selfClient(username: string): OauthClient {
  return {
    clientId: `1000.${stableHex(`client:${username}`, 30).toUpperCase()}`,
    clientSecret: stableHex(`secret:${username}`, 42),
    kind: 'self',
    name: `Self Client of ${username}`,
    owner: username,
    redirectUris: [],
    dataCenter: 'us',
  }
}

/** The organisation's server-based client, for the consent flow. */
export function serverClient(redirectUris: string[]): OauthClient {
  return {
    clientId: `1000.${stableHex('client:server', 30).toUpperCase()}`,
    clientSecret: stableHex('secret:server', 42),
    kind: 'server',
    name: 'Northwind SDP MCP',
    redirectUris,
    dataCenter: 'us',
  }
}

function userRow(
  portal: Portal,
  person: Pick<Person, 'name' | 'email' | 'firstName' | 'lastName'>,
  more: Record<string, unknown>,
): StoredRecord {
  const id = nextId(portal)
  return insert(portal, 'users', {
    id,
    name: person.name,
    first_name: person.firstName,
    last_name: person.lastName,
    email_id: person.email,
    phone: `+31 10 555 ${id.slice(-4)}`,
    mobile: null,
    employee_id: `NW${id.slice(-4)}`,
    is_vip_user: false,
    sms_mail: null,
    sms_mail_id: null,
    login_name: person.email,
    user_scope: 'internal_user',
    photo_url: null,
    status: 'ACTIVE',
    ...more,
  })
}

function joinPortal(portal: Portal, person: Person, wanted: z.output<typeof NewPerson>): void {
  const isTechnician = wanted.role !== 'Requester'
  const groups = wanted.groups.map(name => idOf(portal, 'support_groups', name))
  const site = idOf(portal, 'sites', wanted.site)
  const row = userRow(portal, person, {
    is_technician: isTechnician,
    is_vip_user: wanted.isVip,
    job_title: wanted.jobTitle,
    site,
    department: idOf(portal, 'departments', wanted.department),
    roles: [idOf(portal, 'roles', wanted.role)],
    groups,
    associated_sites: isTechnician ? [site] : [],
    cost_per_hour: isTechnician ? 45 : null,
  })
  for (const id of groups) {
    const group = portal.tables.support_groups?.[id]
    if (group) group.technicians = [...((group.technicians as string[] | undefined) ?? []), row.id]
  }
}

function addTo(state: State, input: NewPerson): Person {
  const wanted = NewPerson.parse(input)
  const person = personFrom(wanted, state.people.length)
  if (state.people.some(one => one.username === person.username || one.email === person.email))
    throw new Error(`There is already a user ${person.username} <${person.email}>.`)
  const portal = state.portals.find(one => one.name === wanted.portal)
  if (!portal) throw new Error(`There is no portal "${wanted.portal}".`)
  joinPortal(portal, person, wanted)
  state.people.push(person)
  state.clients.push(selfClient(person.username))
  return person
}

/** Adds a Zoho account with its self client and its place in a portal; for load tests and isolation tests. */
export function addPerson(world: World, input: NewPerson): Person {
  const person = addTo(world.state, input)
  world.changed()
  return person
}

export function seedPeople(state: State): void {
  for (const account of accounts) addTo(state, account)
  const [itdesk, hrdesk] = state.portals
  const [carol, grace] = ['carol', 'grace'].map(name => state.people.find(one => one.username === name))
  if (!itdesk || !hrdesk || !carol || !grace) throw new Error('seed: portals come before people')
  joinPortal(hrdesk, carol, NewPerson.parse({ username: 'carol', role: 'SDAdmin' }))
  joinPortal(itdesk, grace, NewPerson.parse({ username: 'grace', role: 'Requester', department: 'Human Resources' }))
  for (const portal of [itdesk, hrdesk]) seedRequesters(portal)
}

function seedRequesters(portal: Portal): void {
  const role = idOf(portal, 'roles', 'Requester')
  for (const [name, department, site, title, vip = false] of requesters) {
    const [firstName = name, ...last] = name.split(' ')
    const email = `${name.toLowerCase().replace(/ /g, '.')}@${domain}`
    userRow(
      portal,
      { name, firstName, lastName: last.join(' '), email },
      {
        is_technician: false,
        is_vip_user: vip,
        job_title: title,
        site: idOf(portal, 'sites', site),
        department: idOf(portal, 'departments', department),
        roles: [role],
        groups: [],
        associated_sites: [],
      },
    )
  }
  const [manager] = rowsOf(portal, 'users').filter(row => row.job_title === 'Engineering Director')
  const engineering = idOf(portal, 'departments', 'Engineering')
  for (const row of rowsOf(portal, 'users')) {
    if (row.department === engineering && row !== manager) row.reporting_to = manager?.id
  }
}
