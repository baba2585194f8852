import type { ContentBlock } from '@modelcontextprotocol/sdk/types.js'
import { z } from 'zod'
import { isSdpError } from '../../sdp/errors.ts'
import { at, type Json, rows, text } from '../../sdp/json.ts'
import { child, type SdpPath } from '../../sdp/path.ts'
import { recordPath } from '../../sdp/records.ts'
import { plainLine, untrusted, visible } from '../clean-text.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { strangersLine } from '../markdown.ts'
import { parentId } from '../params.ts'
import { type Outcome, ToolError } from '../result.ts'

const modules = [
  'request',
  'problem',
  'change',
  'release',
  'project',
  'solution',
  'asset',
  'contract',
  'purchase_order',
] as const
/** What a client shows to a model; larger ones are scaled down or refused there. */
const imageTypes = new Set(['image/png', 'image/jpeg', 'image/gif', 'image/webp'])
const defaultBytes = 3 * 1024 * 1024
const textTypes = /^(text\/|application\/(json|xml|x-yaml|yaml|x-sh|javascript|x-ndjson))|\+(json|xml)$/
const textNames = /\.(txt|log|md|csv|tsv|json|ya?ml|xml|ini|conf|cfg|toml|sh|ps1|bat|py|js|ts|sql|html?|eml|reg)$/i

export const getAttachment = defineTool({
  name: 'get_attachment',
  title: 'Look at an attachment',
  toolset: 'core',
  description:
    'Fetches one attachment: pictures are shown, texts are read, other files come as a link. Ids are in attachments of get_request.',
  input: {
    module: z.enum(modules).optional().describe('Default request'),
    parent_id: parentId,
    attachment_id: z.string().min(1).describe('Id or file name'),
    max_bytes: z
      .int()
      .min(1)
      .max(10 * 1024 * 1024)
      .optional()
      .describe('Default 3 MiB'),
  },
  output: { name: z.string().optional(), type: z.string().optional(), text: z.string().optional() },
  effect: 'read',
  scopes: [],
  async run({ module = 'request', parent_id, attachment_id, max_bytes = defaultBytes }, call) {
    const id = await call.records.id(call.sdp, module, parent_id)
    const parent = recordPath(module, id)
    const record = await call.records.get(call.sdp, module, id)
    const found = await find(call, parent, record, attachment_id)
    const name = strangersLine(found.name) ?? 'attachment'
    const url = text(found.content_url)
    const size = Number(text(at(found, 'size.value')) ?? text(found.size) ?? Number.NaN)
    if (Number.isFinite(size) && size > max_bytes) {
      throw new ToolError(
        `"${name}" has ${size} bytes, more than ${max_bytes}.`,
        'Raise max_bytes (10 MiB at most), or open it in the portal.',
        {
          fields: ['max_bytes'],
        },
      )
    }
    const { bytes, contentType } = await fetchBytes(call, parent, found, url, max_bytes)
    const type = plainLine((text(found.content_type) ?? contentType).split(';')[0] ?? '').toLowerCase()
    return show(name, type, bytes, url && new URL(url, call.context.sdp.baseUrl).href)
  },
})

async function find(call: ToolCall, parent: SdpPath, record: Json, wanted: string): Promise<Json> {
  const own = rows(record.attachments)
  const listed = own.length > 0 ? own : await list(call, parent)
  const matches = (row: Json) =>
    [row.id, row.file_id].some(id => text(id) === wanted) || text(row.name)?.toLowerCase() === wanted.toLowerCase()
  const found = listed.find(matches)
  if (found) return found
  throw new ToolError(`There is no attachment "${wanted}" here.`, 'Use an id or name of the list.', {
    fields: ['attachment_id'],
    allowed: listed.map(row => `${text(row.id) ?? text(row.file_id)} (${strangersLine(row.name)})`),
  })
}

async function list(call: ToolCall, parent: SdpPath): Promise<Json[]> {
  try {
    return (await call.sdp.list(child(parent, 'attachments'), undefined, { probe: true })).rows
  } catch (error) {
    if (isSdpError(error, 'not-found', 'missing-scope', 'denied', 'invalid-value', 'drift')) return []
    throw error
  }
}

/** By `content_url`, else by the newer path on premises (docs/sdp-api.md 19). */
async function fetchBytes(call: ToolCall, parent: SdpPath, found: Json, url: string | undefined, maxBytes: number) {
  if (url) return call.sdp.download(url, maxBytes)
  const id = text(found.id) ?? text(found.file_id) ?? ''
  const base = new URL(call.context.sdp.baseUrl).origin
  const { path } = child(parent, 'attachments', id, '_download')
  return call.sdp.download(`${base}/app/${encodeURIComponent(call.context.sdp.portal)}/api/v3${path}`, maxBytes)
}

function show(name: string, type: string, bytes: Uint8Array, url: string | undefined): Outcome {
  const data: Json = { name, type, bytes: bytes.length }
  // what the bytes are counts, not what the sender says they are
  const picture = imageType(bytes)
  if (picture && imageTypes.has(picture)) {
    const image: ContentBlock = { type: 'image', data: Buffer.from(bytes).toString('base64'), mimeType: picture }
    return { data: { ...data, shown: 'as a picture' }, content: [image] }
  }
  if (textTypes.test(type) || textNames.test(name)) {
    const content = new TextDecoder('utf-8', { fatal: false }).decode(bytes)
    return {
      data: { ...data, text: untrusted(visible(content)) },
      budget: 'large',
      rest: 'open the file in the portal',
    }
  }
  const link: ContentBlock[] = url
    ? [{ type: 'resource_link', uri: url, name, ...(type ? { mimeType: type } : {}) }]
    : []
  return {
    data: { ...data, link: url, shown: 'neither a picture nor a text: open the link in a browser' },
    content: link,
  }
}

function imageType(bytes: Uint8Array): string | undefined {
  const head = Buffer.from(bytes.subarray(0, 12))
  if (head.subarray(0, 4).equals(Buffer.from([0x89, 0x50, 0x4e, 0x47]))) return 'image/png'
  if (head.subarray(0, 3).equals(Buffer.from([0xff, 0xd8, 0xff]))) return 'image/jpeg'
  if (head.subarray(0, 4).toString('latin1') === 'GIF8') return 'image/gif'
  if (head.subarray(0, 4).toString('latin1') === 'RIFF' && head.subarray(8, 12).toString('latin1') === 'WEBP')
    return 'image/webp'
  return undefined
}
