import { cut } from '../cut.ts'
import { SdpError, type SdpErrorDetails, type SdpErrorKind } from './errors.ts'
import { isObject, type Json, rows, text } from './json.ts'

type Status = { code: number | undefined; status: string; type: string; fields: string[]; message: string; id?: string }

/**
 * SDP's verdict: `response_status` is an object for one record, an array for lists and bulk operations, with the
 * true code in `messages[]` (docs/sdp-api.md 4.1). Flattened here to one list, innermost entries only.
 */
export function statuses(body: Json): Status[] {
  const outer = Array.isArray(body.response_status) ? rows(body.response_status) : [body.response_status]
  return outer.filter(isObject).flatMap(entry => {
    const own = status(entry)
    const inner = rows(entry.messages).map(message => {
      const read = status(message)
      return { ...read, code: read.code ?? own.code, status: own.status, id: read.id ?? own.id }
    })
    // A failed entry without a code inside keeps the outer one; a success message must not hide a failed entry.
    return inner.length > 0 && own.code !== 3000 ? [...inner, ...(isGood(own) ? [] : [own])] : [own, ...inner]
  })
}

function status(entry: Json): Status {
  const code = Number(text(entry.status_code))
  const field = text(entry.field)
  const listed = Array.isArray(entry.fields) ? entry.fields.map(text).filter(value => value !== undefined) : []
  return {
    code: Number.isInteger(code) && code > 0 ? code : undefined,
    status: text(entry.status) ?? '',
    type: text(entry.type) ?? '',
    fields: field ? [field, ...listed] : listed,
    message: text(entry.message) ?? '',
    id: text(entry.id),
  }
}

function isGood(entry: Status): boolean {
  const codeIsGood = entry.code === undefined || entry.code === 2000 || entry.code === 200
  return codeIsGood && !/^fail/i.test(entry.type) && !/^fail/i.test(entry.status)
}

/** Success only when every entry is 2000 and none failed; an answer without any verdict counts by its HTTP status. */
export function isSuccess(body: Json): boolean {
  return statuses(body).every(isGood)
}

/** One verdict per record of a bulk operation, in SDP's order. */
export function bulkVerdicts(body: Json): { id?: string; ok: boolean; said: string }[] {
  return rows(body.response_status).map(entry => {
    const all = statuses({ response_status: entry })
    return { id: text(entry.id) ?? all.find(one => one.id)?.id, ok: all.every(isGood), said: said(all) }
  })
}

/** Texts of success messages, e.g. of a link operation. */
export function messages(body: Json): string[] {
  return statuses(body)
    .map(entry => entry.message)
    .filter(message => message !== '')
}

const kindOfCode: Record<number, SdpErrorKind> = {
  3000: 'warning-3000',
  4001: 'invalid-value',
  4002: 'denied',
  4004: 'down',
  4005: 'conflict',
  4007: 'not-found',
  4008: 'conflict',
  4009: 'denied',
  4012: 'mandatory',
  4014: 'denied',
  4015: 'limited',
  4016: 'invalid-value',
  4021: 'invalid-value',
  4022: 'missing-scope',
  7001: 'denied',
}

/** Turns a failed answer into the error of its kind. `body` is undefined when the answer was no JSON. */
export function failure(httpStatus: number, body: Json | undefined, extra: SdpErrorDetails): SdpError {
  const entries = body ? statuses(body).filter(entry => !isGood(entry)) : []
  // 4000 only wraps; of several codes the one that says most wins
  const decisive = entries.find(entry => entry.code !== undefined && entry.code !== 4000) ?? entries[0]
  const kind = kindOf(httpStatus, decisive)
  const fields = [...new Set(entries.flatMap(entry => entry.fields))]
  const details: SdpErrorDetails = {
    ...extra,
    httpStatus,
    statusCode: decisive?.code,
    fields,
    said: said(entries) || undefined,
  }
  return new SdpError(kind, sentence(kind, details), details)
}

function kindOf(httpStatus: number, decisive: Status | undefined): SdpErrorKind {
  // on-premises wording of the limit, seen with HTTP 400 (docs/sdp-api.md 4.5)
  if (httpStatus === 429 || /maximum access limit/i.test(decisive?.message ?? '')) return 'limited'
  const byCode = decisive?.code === undefined ? undefined : kindOfCode[decisive.code]
  if (byCode) return byCode
  if (httpStatus === 401) return 'missing-scope'
  if (httpStatus === 403) return 'denied'
  if (httpStatus === 404) return 'not-found'
  if (httpStatus === 409) return 'conflict'
  if (httpStatus >= 500) return 'down'
  if (httpStatus === 415 || httpStatus < 400) return 'drift'
  return 'invalid-value'
}

function said(entries: Status[]): string {
  const texts = entries.map(entry => entry.message).filter(message => message !== '')
  return cut([...new Set(texts)].join('; ').toWellFormed(), 300)
}

export function sentence(kind: SdpErrorKind, details: SdpErrorDetails): string {
  const fields = details.fields?.length ? ` (${details.fields.join(', ')})` : ''
  switch (kind) {
    case 'not-found':
      return 'ServiceDesk Plus found no such record or address.'
    case 'denied':
      return `ServiceDesk Plus does not let this person do that${fields}.`
    case 'missing-scope':
      return 'ServiceDesk Plus refused the call although the access token is fresh.'
    case 'mandatory':
      return `Mandatory fields are missing${fields}.`
    case 'invalid-value':
      return `ServiceDesk Plus does not accept a value${fields}.`
    case 'conflict':
      return `The record is in use elsewhere or the value is not unique${fields}.`
    case 'limited':
      return 'ServiceDesk Plus limits the number of calls at the moment.'
    case 'warning-3000':
      return `ServiceDesk Plus answered with a warning; nothing can be taken as done${fields}.`
    case 'down':
      return 'ServiceDesk Plus could not be reached or failed.'
    case 'drift':
      return 'ServiceDesk Plus answered with something that is not an API answer.'
    case 'indeterminate':
      return 'No answer came in time: the change may have been made or not.'
    case 'cancelled':
      return 'The call was cancelled.'
  }
}
