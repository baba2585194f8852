import { FormData } from 'undici'
import { z } from 'zod'
import { isSdpError } from '../../sdp/errors.ts'
import { at, instant, type Json, rows, text } from '../../sdp/json.ts'
import { child } from '../../sdp/path.ts'
import { recordPath } from '../../sdp/records.ts'
import { settled } from '../../sdp/settle.ts'
import { visible } from '../clean-text.ts'
import { defineTool, type ToolCall } from '../define.ts'
import { dryRun, parentId } from '../params.ts'
import { ToolError } from '../result.ts'
import { attachments } from '../rows.ts'

const modules = ['request', 'problem', 'change', 'release', 'project', 'solution', 'asset'] as const
/** A client that works on production sites limits itself to this (docs/sdp-api.md 19). */
const mostBytes = 10 * 1024 * 1024
/** Programs that run when somebody clicks them; a desk should not hand them around. */
const refused = /\.(exe|scr|com|pif|msi|msp|dll|cpl|lnk|vbs|vbe|hta|jar|wsf|reg)$/i

const types: Record<string, string> = {
  txt: 'text/plain',
  log: 'text/plain',
  md: 'text/markdown',
  csv: 'text/csv',
  json: 'application/json',
  xml: 'application/xml',
  html: 'text/html',
  pdf: 'application/pdf',
  png: 'image/png',
  jpg: 'image/jpeg',
  jpeg: 'image/jpeg',
  gif: 'image/gif',
  webp: 'image/webp',
  zip: 'application/zip',
}

export const addAttachment = defineTool({
  name: 'add_attachment',
  title: 'Attach a file',
  toolset: 'core',
  description:
    'Attaches a file of up to 10 MiB to a ticket or another record; programs are refused. The requester may see it.',
  input: {
    module: z.enum(modules).optional().describe('Default request'),
    parent_id: parentId,
    name: z.string().min(1).max(200).describe('File name with extension'),
    content: z.string().min(1),
    encoding: z.enum(['text', 'base64']).optional().describe('Default text'),
    dry_run: dryRun,
  },
  output: { attachment_id: z.string().optional(), name: z.string(), bytes: z.number() },
  effect: 'write',
  scopes: [],
  async run({ module = 'request', parent_id, name, content, encoding = 'text', dry_run }, call) {
    const fileName = checkedName(name)
    const bytes = encoding === 'base64' ? decoded(content) : Buffer.from(content, 'utf8')
    if (bytes.length > mostBytes) {
      throw new ToolError(`The file has ${bytes.length} bytes; 10 MiB is the most.`, 'Compress it or attach a part.', {
        fields: ['content'],
      })
    }
    const id = await call.records.id(call.sdp, module, parent_id)
    const type = types[/\.([^.]+)$/.exec(fileName)?.[1]?.toLowerCase() ?? ''] ?? 'application/octet-stream'
    const page = module === 'asset' ? 'assets' : (`${module}s` as const)
    const head = { name: fileName, bytes: bytes.length, type, on: module, id, url: call.site.link(page, id) }
    if (dry_run) return { data: { ...head, dry_run: true, nothing_sent: true } }
    const uploaded = await upload(call, module, id, fileName, type, bytes)
    const shown = await onRecord(call, module, id, fileName, uploaded)
    return {
      data: {
        attachment_id: shown ?? uploaded,
        ...head,
        warning: shown ? undefined : 'The site took the file, but the record does not show it yet.',
      },
    }
  },
})

function checkedName(name: string): string {
  const cleaned = visible(name)
    .replace(/[\\/:*?"<>|\n\t]/g, '_')
    .trim()
  if (cleaned === '' || /^\.+$/.test(cleaned))
    throw new ToolError('The file needs a name.', 'Give a name with extension.', { fields: ['name'] })
  if (refused.test(cleaned)) {
    throw new ToolError(
      `Files like "${cleaned}" are not attached: they run when opened.`,
      'Attach a text or an archive instead.',
      { fields: ['name'] },
    )
  }
  return cleaned
}

function decoded(content: string): Buffer {
  const compact = content.replace(/^data:[^,]{0,100},/, '').replace(/\s+/g, '')
  if (!/^[A-Za-z0-9+/_-]*={0,2}$/.test(compact) || compact.length % 4 === 1) {
    throw new ToolError('content is not base64.', 'Send base64, or encoding=text.', { fields: ['content'] })
  }
  return Buffer.from(compact, 'base64')
}

/** docs/sdp-api.md 19: `_uploads` with `addtoattachment`, answered by `files[]` or `attachment`. @returns the file id, where told */
async function upload(
  call: ToolCall,
  module: (typeof modules)[number],
  id: string,
  name: string,
  type: string,
  bytes: Buffer,
): Promise<string | undefined> {
  const form = new FormData()
  form.append('filename', new Blob([new Uint8Array(bytes)], { type }), name)
  form.append('addtoattachment', 'true')
  const parent = recordPath(module, id)
  const request = { method: 'POST', form, timeoutMs: 120_000 } as const
  const send = () =>
    call.sdp.request({ ...request, path: child(parent, '_uploads') }).catch(error => {
      if (!isSdpError(error, 'not-found')) throw error
      return call.sdp.request({ ...request, path: child(parent, 'uploads') })
    })
  const startedAt = call.context.now()
  const { body } = await settled<{ body: Json }>(send, async () => {
    const record = await call.records.get(call.sdp, module, id)
    const attachment = rows(record.attachments).find(
      row => text(row.name) === name && (instant(row.attached_on) ?? 0) >= startedAt - 30_000,
    )
    return attachment && { body: { attachment } }
  })
  const file = rows(body.files)[0] ?? rows(body.attachments)[0] ?? body.attachment ?? body.file
  return text(at(file, 'id')) ?? text(at(file, 'file_id'))
}

/** The id under which the record shows the file. */
async function onRecord(
  call: ToolCall,
  module: (typeof modules)[number],
  id: string,
  name: string,
  uploaded: string | undefined,
): Promise<string | undefined> {
  const shown = attachments(await call.records.get(call.sdp, module, id))
  const found = shown.find(file => file.id === uploaded) ?? shown.findLast(file => file.name === name)
  return text(found?.id)
}
