import { isSdpError, SdpError } from '../../sdp/errors.ts'
import { at, isObject, type Json, text } from '../../sdp/json.ts'
import { child, path, type SdpPath } from '../../sdp/path.ts'
import { entity } from '../../sdp/requests.ts'
import type { ToolCall } from '../define.ts'
import { strangersHtml, strangersLine } from '../markdown.ts'
import { nameLine, plainValue, time } from '../request-view.ts'

/** API name of a CI type as people say it: "server" is `ci_server` (docs/sdp-api.md 14). */
export function ciType(given: string): string {
  const plain = given
    .trim()
    .toLowerCase()
    .replace(/[\s-]+/g, '_')
  return /^(ci|cm)_/.test(plain) ? plain : `ci_${plain}`
}

export function ciPath(type: string, ...segments: string[]): SdpPath {
  return child(path`/cmdb`, type, ...segments)
}

/** The root key is the API name of the type. */
export async function readCi(call: ToolCall, type: string, id: string): Promise<Json> {
  return entity(await known(type, call.sdp.get(ciPath(type, id))), type)
}

/** An unknown type answers like an unknown record; the model can only mend it when told so. */
export async function known<T>(type: string, work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (error) {
    if (!isSdpError(error, 'not-found')) throw error
    throw new SdpError('not-found', `There is no CI type "${type}" or no such CI.`, {
      ...error.details,
      fields: ['ci_type'],
      nextStep:
        'Give the API name of the CI type, such as ci_computer or ci_server; the CMDB settings of the site show it.',
    })
  }
}

export function ciRow(raw: Json, zone: string): Json {
  return {
    id: text(raw.id),
    name: strangersLine(raw.name),
    type: nameLine(raw.ci_type),
    description: strangersLine(text(raw.description)?.replace(/<[^>]*>/g, ' '), 120),
    created: time(raw.created_time, zone),
  }
}

export function ciDetail(raw: Json, zone: string): Json {
  return {
    ...ciRow(raw, zone),
    description: strangersHtml(raw.description),
    attributes: isObject(raw.ci_attributes) ? plainValue(raw.ci_attributes, zone) : undefined,
    linked: isObject(raw.linked_instance) ? plainValue(raw.linked_instance, zone) : undefined,
    updated: time(raw.last_updated_time, zone),
    updated_by: nameLine(raw.last_updated_by),
  }
}

export function relationRow(raw: Json): Json {
  return {
    relation_id: text(raw.id),
    relation: nameLine(raw.relationship_type) ?? nameLine(raw.relationship),
    ci: nameLine(raw.ci) ?? nameLine(raw.related_ci) ?? nameLine(raw.child_ci),
    ci_id: text(at(raw, 'ci.id')) ?? text(at(raw, 'related_ci.id')),
  }
}
