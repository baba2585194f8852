import { Cache } from './cache.ts'
import type { Sdp, SdpPage } from './client.ts'
import { SdpError } from './errors.ts'
import { flag, instant, type Json, text } from './json.ts'
import { criteria, is, type ListInfo, largestPage } from './list-info.ts'
import { child, path, type SdpPath } from './path.ts'
import { entity } from './requests.ts'
import { alike, holds, settled } from './settle.ts'

/** The modules whose records follow the generic rules of docs/sdp-api.md 6. */
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
  /** The same for several, in one call. The order is kept, doubles are not. At most 100. */
  ids(sdp: Sdp, module: RecordModule, references: string[]): Promise<string[]>
  get(sdp: Sdp, module: RecordModule, id: string): Promise<Json>
  list(sdp: Sdp, module: RecordModule, info: ListInfo): Promise<SdpPage>
  /**
   * Several records by id, in one call, each with the given fields only. What is gone or not visible is not in the map.
   * At most 100.
   */
  many(sdp: Sdp, module: RecordModule, ids: string[], fields: string[]): Promise<Map<string, Json>>
  /**
   * Fields of a record that hardly change, such as subject and requester: as this person's session saw them within five
   * minutes, else read. Not for what a decision must be fresh for.
   */
  head(sdp: Sdp, module: RecordModule, id: string, fields: string[]): Promise<Json>
  create(sdp: Sdp, module: RecordModule, record: Json): Promise<Json>
  /** @returns what the site answers: the whole record as it is after the edit (docs/sdp-api.md 4.1) */
  update(sdp: Sdp, module: RecordModule, id: string, record: Json): Promise<Json>
  /**
   * Edits a record and tells what the site made of it: from its own answer where that shows every field that was sent,
   * else by reading again.
   */
  change(sdp: Sdp, module: RecordModule, id: string, record: Json): Promise<Json>
}

type Head = { fields: Json; knows: (field: string) => boolean }
const headMaxAgeMs = 5 * 60_000
/** How far the site's clock may be behind ours. */
const clockSkewMs = 30_000

export function recordPath(module: RecordModule, id: string): SdpPath {
  return child(path``, recordModules[module].plural, id)
}

export function createRecords(options: { now: () => number }): Records {
  // a number belongs to its record for ever
  const ids = new Cache<string>({ size: 2_000, maxAgeMs: 24 * 3_600_000, now: options.now })
  const heads = new Cache<Head>({ size: 500, maxAgeMs: headMaxAgeMs, now: options.now })
  const collection = (module: RecordModule) => child(path``, recordModules[module].plural)

  /** Numbers that were just shown are the ones asked for next; knowing their ids saves a call each time. */
  function remember(module: RecordModule, record: Json): Json {
    const [id, number] = [text(record.id), digitsOf(record.display_id)]
    if (id && number && recordModules[module].hasNumber) ids.set(`${module} ${String(BigInt(number))}`, id)
    return record
  }

  /** Keeps references and short texts; long texts would fill the memory. */
  function keepHead(module: RecordModule, record: Json, asked?: string[]): void {
    const id = text(record.id)
    if (!id) return
    const fields = Object.fromEntries(
      Object.entries(record).filter(([, value]) => typeof value !== 'string' || value.length <= 1_000),
    )
    for (const long of ['description', 'resolution', 'udf_fields', 'attachments']) delete fields[long]
    heads.set(`${module} ${id}`, { fields, knows: field => asked === undefined || asked.includes(field) })
  }

  const unknownNumber = (module: RecordModule, number: string) =>
    new SdpError('not-found', `There is no ${spoken(module)} #${number} that you may see.`, {
      fields: [`${module}_id`],
      nextStep: 'Check the number, or search for the record.',
    })

  /** The record that a create without an answer made: the newest one of that name, made since. */
  async function newest(sdp: Sdp, module: RecordModule, record: Json, startedAt: number): Promise<Json | undefined> {
    const key = ['subject', 'title', 'name'].find(name => record[name] !== undefined)
    if (!key) return undefined
    const page = await records.list(sdp, module, {
      row_count: 5,
      start_index: 1,
      sort_field: 'id',
      sort_order: 'desc',
      search_criteria: criteria(is(key, text(record[key]) ?? '')),
    })
    const made = page.rows.find(row => {
      const at = instant(row.created_time)
      return alike(row[key], record[key]) && (at === undefined || at >= startedAt - clockSkewMs)
    })
    const id = text(made?.id)
    return id === undefined ? undefined : records.get(sdp, module, id)
  }

  const records: Records = {
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
      if (!id) throw unknownNumber(module, parsed.number)
      return ids.set(key, id)
    },
    async ids(sdp, module, references) {
      const parsed = references.map(reference => parseReference(module, reference))
      const numbers = parsed.flatMap(one => ('number' in one ? [one.number] : []))
      const open = [...new Set(numbers)].filter(number => !ids.get(`${module} ${number}`))
      if (open.length > 0) {
        // what a row shows is remembered with its number
        await records.list(sdp, module, {
          row_count: Math.min(open.length + 1, largestPage),
          start_index: 1,
          search_criteria: criteria(is('display_id', ...open)),
          fields_required: ['id', 'display_id'],
        })
      }
      const found = parsed.map(one => {
        if ('id' in one) return one.id
        const id = ids.get(`${module} ${one.number}`)
        if (!id) throw unknownNumber(module, one.number)
        return id
      })
      return [...new Set(found)]
    },
    async get(sdp, module, id) {
      const record = remember(module, entity(await sdp.get(recordPath(module, id)), module))
      keepHead(module, record)
      return record
    },
    async list(sdp, module, info) {
      const page = await sdp.list(collection(module), info)
      for (const row of page.rows) {
        remember(module, row)
        // a row that shows less must not take the place of a whole record
        if (info.fields_required && !heads.get(`${module} ${text(row.id)}`)) keepHead(module, row, info.fields_required)
      }
      return page
    },
    async many(sdp, module, wanted, fields) {
      const { rows } = await records.list(sdp, module, {
        row_count: Math.min(wanted.length + 1, largestPage),
        start_index: 1,
        search_criteria: criteria(is('id', ...wanted)),
        fields_required: [...new Set(['id', ...fields])],
      })
      const found = rows.map(row => [text(row.id) ?? '', row] as const)
      return new Map(found.filter(([id, row]) => wanted.includes(id) && flag(row.is_trashed) !== true))
    },
    async head(sdp, module, id, fields) {
      const known = heads.get(`${module} ${id}`)
      return known && fields.every(known.knows) ? known.fields : records.get(sdp, module, id)
    },
    async create(sdp, module, record) {
      const startedAt = options.now()
      const create = async () => entity(await sdp.post(collection(module), { [module]: record }), module)
      return remember(module, await settled(create, () => newest(sdp, module, record, startedAt)))
    },
    async update(sdp, module, id, record) {
      heads.delete(`${module} ${id}`)
      const edit = async () => entity(await sdp.put(recordPath(module, id), { [module]: record }), module)
      return settled(edit, async () => {
        const present = await records.get(sdp, module, id)
        return holds(present, record, writeOnly) ? present : undefined
      })
    },
    async change(sdp, module, id, record) {
      const answer = await records.update(sdp, module, id, record)
      const isTold = text(answer.id) === id && Object.keys(record).every(key => key in answer || writeOnly.has(key))
      return isTold ? answer : records.get(sdp, module, id)
    },
  }
  return records
}

/** Sent with an edit, never shown by a record (docs/sdp-api.md 7.2, 9, 13). */
const writeOnly = new Set(['comment', 'update_reason', 'status_change_comments', 'state_history_comments'])

/** What people call a record of the module. */
function spoken(module: RecordModule): string {
  return module === 'request' ? 'ticket' : module.replace('_', ' ')
}

/** Some sites show the number with its prefix in `display_id` too. */
function digitsOf(value: unknown): string | undefined {
  const shown = text(value)
  return shown === undefined ? undefined : /(\d+)$/.exec(shown)?.[1]
}

/** Longer than this a number is an id, not the number on the screen (docs/sdp-api.md 18.13). */
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
