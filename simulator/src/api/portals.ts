import { personOf } from '../accounts/accounts.ts'
import type { AccessToken } from '../state.ts'
import type { World } from '../world.ts'
import type { Reply } from './call.ts'
import { many } from './envelope.ts'
import { callerIn } from './permissions.ts'

/** `GET /api/v3/portals`: the portals the token's user belongs to (docs/sdp-api.md 1.2). */
export function listPortals(world: World, token: AccessToken): Reply {
  const person = personOf(world, token.user)
  const mine = world.state.portals.filter(portal => person && callerIn(portal, person.email))
  const owner = world.state.people.find(one => one.username === 'carol')
  const portals = mine.map(portal => ({
    id: portal.id,
    name: portal.name,
    display_name: portal.displayName,
    description: `${portal.displayName} of Northwind Robotics`,
    status: 'active',
    is_default: portal.isDefault,
    portal_type: 'public',
    department_type: 'internal',
    scope: 'internal',
    timezone: 'Etc/UTC',
    start_day_of_week: 'Monday',
    logo_url: null,
    owner: owner ? { owner_name: owner.name, email: owner.email } : null,
    app_context: portal.name,
  }))
  return many('portals', portals, { has_more_rows: false, start_index: 1, row_count: portals.length })
}
