import { emptyState, newPortal, type Portal, type State, stableHex } from '../state.ts'
import { seedEstate } from './estate.ts'
import { seedKnowledge } from './knowledge.ts'
import { seedLookups } from './lookups.ts'
import { seedPeople, serverClient } from './people.ts'
import { seedPractices } from './practices.ts'
import { seedProjects } from './projects.ts'
import { Random } from './random.ts'
import { seedRequestDetails } from './request-details.ts'
import { seedRequests } from './requests.ts'

export interface SeedOptions {
  /** All times lie relative to this instant. */
  now: number
  /** False leaves people and lookups only. */
  tickets: boolean
  redirectUris?: string[]
}

const defaultRedirectUris = ['http://127.0.0.1:3456/oauth/callback', 'http://localhost:3456/oauth/callback']

/** The desk of Northwind Robotics: two portals, eight accounts, and a few weeks of work. The same for the same `now`. */
export function seed({ now, tickets, redirectUris = defaultRedirectUris }: SeedOptions): State {
  const state = emptyState()
  state.portals.push(
    newPortal('itdesk', 'IT Desk', '990000000000', true),
    newPortal('hrdesk', 'HR Desk', '880000000000', false),
  )
  for (const portal of state.portals) seedLookups(portal)
  seedPeople(state)
  state.clients.push(serverClient(redirectUris), {
    clientId: `1000.${stableHex('client:eu', 30).toUpperCase()}`,
    clientSecret: stableHex('secret:eu', 42),
    kind: 'self',
    name: 'A client of another data center',
    owner: undefined,
    redirectUris: [],
    dataCenter: 'eu',
  })
  if (!tickets) return state
  for (const portal of state.portals) seedRequests(portal, now)
  const itdesk = state.portals[0]
  if (itdesk) seedItDesk(itdesk, now)
  return state
}

/** The IT desk has more than tickets; the HR desk is small. */
function seedItDesk(portal: Portal, now: number): void {
  seedEstate(portal, now, new Random(4_711))
  seedRequestDetails(portal, now)
  seedPractices(portal, now)
  seedProjects(portal, now)
  seedKnowledge(portal, now)
}
