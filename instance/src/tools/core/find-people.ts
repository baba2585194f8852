import { z } from 'zod'
import { all, is } from '../../sdp/list-info.ts'
import type { Person } from '../../sdp/people.ts'
import { personIs } from '../../sdp/people.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { optionName } from '../params.ts'
import { nameLine } from '../request-view.ts'

/** Counting costs a call per person. */
const mostCounted = 5

export const findPeople = defineTool({
  name: 'find_people',
  title: 'Find people',
  toolset: 'core',
  description:
    'Finds requesters and technicians by part of the name or by e-mail, with id, site, department and VIP flag.',
  input: {
    query: z.string().min(1).describe('me, name, part of a name, or e-mail'),
    kind: z.enum(['requester', 'technician', 'any']).optional().describe('Default any'),
    group: optionName.optional().describe('Support group of technicians'),
    department: optionName.optional(),
    open_tickets: z.boolean().optional().describe('Count their open tickets'),
  },
  output: { people: z.array(z.looseObject({})) },
  effect: 'read',
  scopes: ['requests.READ'],
  async run({ query, kind = 'any', group, department, open_tickets }, call) {
    const people =
      query.trim().toLowerCase() === 'me'
        ? [await call.people.me(call.sdp)]
        : await call.people.find(call.sdp, query, { kind, group, department })
    const counted = open_tickets ? people.slice(0, mostCounted) : []
    const open = new Map(
      await Promise.all(counted.map(async person => [person, await openTickets(call, person)] as const)),
    )
    return {
      data: {
        people: people.map(person => ({
          id: person.id,
          name: nameLine(person),
          email: strangersLine(person.email),
          technician: person.isTechnician || undefined,
          vip: person.isVip || undefined,
          site: nameLine(person.site),
          department: nameLine(person.department),
          job_title: strangersLine(person.jobTitle),
          phone: strangersLine(person.phone),
          open_tickets: open.get(person),
        })),
        hint: people.length === 0 ? 'Nobody found: try another part of the name, or the e-mail address.' : undefined,
      },
      rest: 'use a longer part of the name',
    }
  },
})

async function openTickets(call: ToolCall, person: Person): Promise<number | undefined> {
  const reference = person.id ? { id: person.id } : person.email ? { email_id: person.email } : undefined
  if (!reference) return undefined
  const field = person.isTechnician ? 'technician' : 'requester'
  return call.requests.count(call.sdp, all(is('status.in_progress', true), personIs(field, reference)))
}
