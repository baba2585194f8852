import { Cache } from './cache.ts'
import type { Sdp, SdpPage } from './client.ts'
import { SdpError } from './errors.ts'
import { type Json, text } from './json.ts'
import { criteria, is, type ListInfo } from './list-info.ts'
import { child, path, type SdpPath } from './path.ts'
import { entity } from './requests.ts'

/** The modules whose records follow the generic rules of fact sheet 6. */
export const recordModules = {
  request: { plural: 'requests', hasNumber: true },
  problem: { plural: 'problems', hasNumber: true },
  change: { plural: 'changes', hasNumber: true },
  release: { plural: 'releases', hasNumber: true },
  project: { plural: 'projects', hasNumber: true },
  solution: { plural: 'solutions', hasNumber: true },
  asset: { plural: 'assets', hasNumber: false },
  contract: { plural: 'contracts', hasNumber: false },
  purchase_order: { plural: 'purchase_orders', hasNumber: false },
  announcement: { plural: 'announcements', hasNumber: false },
} as const
export type RecordModule = keyof typeof recordModules

/** Reads and writes records of any module. */
export interface Records {
  /** The long id of a record given by long id, display number (`12`, `#12`, `CH-12`) or portal address. */
  id(sdp: Sdp, module: RecordModule, reference: string): Promise<string>
  get(sdp: Sdp, module: RecordModule, id: string): Promise<Json>
  list(sdp: Sdp, module: RecordModule, info: ListInfo): Promise<SdpPage>
  create(sdp: Sdp, module: RecordModule, record: Json): Promise<Json>
  update(sdp: Sdp, module: RecordModule, id: string, record: Json): Promise<Json>
}

export function recordPath(module: RecordModule, id: string): SdpPath {
  return child(path``, recordModules[module].plural, id)
}

export function createRecords(options: { now: () => number }): Records {
  // a number belongs to its record for ever
  const ids = new Cache<string>({ size: 2_000, maxAgeMs: 24 * 3_600_000, now: options.now })
  const collection = (module: RecordModule) => child(path``, recordModules[module].plural)

  /** Numbers that were just shown are the ones asked for next; knowing their ids saves a call each time. */
  function remember(module: RecordModule, record: Json): Json {
    const [id, number] = [text(record.id), digitsOf(record.display_id)]
    if (id && number && recordModules[module].hasNumber) ids.set(`${module} ${String(BigInt(number))}`, id)
    return record
  }

  return {
    async id(sdp, module, reference) {
      const parsed = parseReference(module, reference)
      if ('id' in parsed) return parsed.id
      const key = `${module} ${parsed.number}`
      const known = ids.get(key)
      if (known) return known
      const page = await sdp.list(collection(module), {
        row_count: 2,
        start_index: 1,
        search_criteria: criteria(is('display_id', parsed.number)),
        fields_required: ['id', 'display_id'],
      })
      const found = page.rows.find(row => digitsOf(row.display_id) === parsed.number)
      const id = text(found?.id)
      if (!id) {
        throw new SdpError('not-found', `There is no ${spoken(module)} #${parsed.number} that you may see.`, {
          fields: [`${module}_id`],
          nextStep: 'Check the number, or search for the record.',
        })
      }
      return ids.set(key, id)
    },
    async get(sdp, module, id) {
      return remember(module, entity(await sdp.get(recordPath(module, id)), module))
    },
    async list(sdp, module, info) {
      const page = await sdp.list(collection(module), info)
      for (const row of page.rows) remember(module, row)
      return page
    },
    async create(sdp, module, record) {
      return remember(module, entity(await sdp.post(collection(module), { [module]: record }), module))
    },
    async update(sdp, module, id, record) {
      return entity(await sdp.put(recordPath(module, id), { [module]: record }), module)
    },
  }
}

/** What people call a record of the module. */
function spoken(module: RecordModule): string {
  return module === 'request' ? 'ticket' : module.replace('_', ' ')
}

/** Some sites show the number with its prefix in `display_id` too. */
function digitsOf(value: unknown): string | undefined {
  const shown = text(value)
  return shown === undefined ? undefined : /(\d+)$/.exec(shown)?.[1]
}

/** Longer than this a number is an id, not the number on the screen (fact sheet 18.13). */
const longestNumber = 11

/** @throws SdpError `invalid-value` */
export function parseReference(module: RecordModule, reference: string): { id: string } | { number: string } {
  const trimmed = reference.trim()
  const { plural, hasNumber } = recordModules[module]
  const address = /^https?:\/\/\S+$/i.test(trimmed) ? trimmed : undefined
  const inAddress =
    address && new RegExp(`(?:/${plural}/|[?&](?:wo|workOrder|${module})ID=)(\\d+)`, 'i').exec(address)?.[1]
  const plainDigits = address ? undefined : /^(?:#{1,2}|[A-Za-z]{1,10}[-_ #]*)?\s*(\d{1,25})(?:##)?$/.exec(trimmed)?.[1]
  const digits = inAddress ?? plainDigits
  if (!digits) {
    throw new SdpError('invalid-value', `"${trimmed.slice(0, 80)}" is not a ${spoken(module)}.`, {
      fields: [`${module}_id`],
      nextStep: hasNumber
        ? 'Give the number on the screen (57, #57, RE-57), the long id, or the address of the page.'
        : 'Give the id, as the search tools show it.',
    })
  }
  return digits.length > longestNumber || !hasNumber ? { id: digits } : { number: String(BigInt(digits)) }
}
