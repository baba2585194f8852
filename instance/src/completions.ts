import { Cache } from './sdp/cache.ts'
import { text } from './sdp/json.ts'
import { all, criteria, is } from './sdp/list-info.ts'
import { personIs } from './sdp/people.ts'
import type { Services } from './services.ts'

/** Suggestions while a person types an argument. They are a convenience: a failure suggests nothing. */
export interface Completions {
  /** Numbers of my open tickets that start with what is typed. */
  tickets(typed: string): Promise<string[]>
  people(typed: string): Promise<string[]>
}

const patienceMs = 3_000
const maxAgeMs = 60_000

export function createCompletions(services: Omit<Services, 'completions'>): Completions {
  const { context, client, people, requests } = services
  const numbers = new Cache<string[]>({ size: 1, maxAgeMs, now: context.now })
  const sdp = () => client.bind({ signal: AbortSignal.timeout(patienceMs) })

  return {
    async tickets(typed) {
      try {
        const known = numbers.get('mine') ?? numbers.set('mine', await mine())
        return known.filter(number => number.startsWith(typed.replace(/^#/, '').trim()))
      } catch {
        return []
      }
    },
    async people(typed) {
      if (typed.trim().length < 2) return []
      try {
        // what it comes with, a parser of HTML, is needed by tools and by nobody who waits
        const { strangersLine } = await import('./tools/markdown.ts')
        const found = await people.find(sdp(), typed, { kind: 'technician' })
        return found.map(person => strangersLine(person.name) ?? '').filter(name => name !== '')
      } catch {
        return []
      }
    },
  }

  async function mine(): Promise<string[]> {
    const { reference } = await people.resolve(sdp(), 'me', 'technician', 'technician')
    const page = await requests.list(sdp(), {
      row_count: 50,
      start_index: 1,
      sort_field: 'last_updated_time',
      sort_order: 'desc',
      search_criteria: criteria(all(is('status.in_progress', true), personIs('technician', reference))),
      fields_required: ['id', 'display_id'],
    })
    return page.rows.map(row => text(row.display_id)).filter(number => number !== undefined)
  }
}
