import type { Call, Reply, UploadedFile } from '../api/call.ts'
import { done } from '../api/envelope.ts'
import { fail } from '../api/failure.ts'
import { showFile } from '../api/fields.ts'
import type { Operations } from '../modules/module.ts'
import { insert, nextId, rowById, type StoredRecord } from '../state.ts'

/** Keeps a file for the record; the outermost record decides who may download it. */
function keepFile(call: Call, { name, contentType, content }: UploadedFile): StoredRecord {
  const limit = call.world.faults.switches.attachmentLimitBytes
  if (content.length > limit) throw fail.refused(`The file is larger than ${limit} bytes`)
  const owner = call.trail.at(0) ?? (call.record ? { module: call.module, record: call.record } : undefined)
  return insert(call.portal, 'attachments', {
    id: nextId(call.portal),
    ...(owner ? { parent: owner.record.id, parentTable: owner.module.table } : {}),
    name,
    content_type: contentType,
    bytes: content.length,
    content: content.toString('base64'),
    attached_by: call.caller.row.id,
    attached_on: call.world.now(),
  })
}

function attach(call: Call, file: StoredRecord): void {
  const { record, module } = call
  if (!record) return
  const attached = [...((record.attachments as string[] | undefined) ?? []), file.id]
  const { maxItems } = module.fields.attachments ?? {}
  if (maxItems !== undefined && attached.length > maxItems) throw fail.refused(`At most ${maxItems} attachments`)
  record.attachments = attached
}

/**
 * `POST .../_uploads`, multipart with the file in part `filename`; `addtoattachment=true` puts it on the record, else
 * there is only a file_id to refer to (docs/sdp-api.md 19). The older `PUT .../upload` takes part `input_file` and always adds.
 */
function upload(part: string, addsAlways: boolean) {
  return (call: Call): Reply => {
    const files = call.files.filter(file => file.part === part)
    if (files.length === 0) throw fail.mandatory([part])
    const stranger = call.files.find(file => file.part !== part)
    if (stranger) throw fail.extraParameter(stranger.part)
    const kept = files.map(file => keepFile(call, file))
    if (addsAlways || call.form.addtoattachment === 'true') for (const file of kept) attach(call, file)
    call.world.changed()
    return {
      status: 200,
      body: {
        files: kept.map(file => showFile(file, call)),
        response_status: { status_code: 2000, status: 'success' },
      },
    }
  }
}

export function download(file: StoredRecord): Reply {
  return {
    status: 200,
    file: {
      name: String(file.name),
      contentType: String(file.content_type),
      content: Buffer.from(String(file.content), 'base64'),
    },
  }
}

function attachedFile(call: Call): StoredRecord {
  const id = call.params.fileId ?? ''
  const ids = (call.record?.attachments as string[] | undefined) ?? []
  const file = ids.includes(id) ? rowById(call.portal, 'attachments', id) : undefined
  if (!file) throw fail.invalidUrl()
  return file
}

/** What every record with attachments can do. */
export const uploadOperations: Operations = {
  'POST uploads': upload('filename', false),
  'PUT upload': upload('input_file', true),
  'GET /attachments': call => ({
    status: 200,
    body: {
      attachments: ((call.record?.attachments as string[] | undefined) ?? []).flatMap(id => {
        const file = rowById(call.portal, 'attachments', id)
        return file ? [showFile(file, call)] : []
      }),
      response_status: [{ status_code: 2000, status: 'success' }],
    },
  }),
  'GET /attachments/:fileId/_download': call => download(attachedFile(call)),
  'GET /attachments/:fileId/download': call => download(attachedFile(call)),
  'DELETE /attachments/:fileId'(call) {
    const file = attachedFile(call)
    if (call.record) {
      call.record.attachments = ((call.record.attachments as string[] | undefined) ?? []).filter(id => id !== file.id)
    }
    call.world.changed()
    return done()
  },
}

/** Uploads before the record exists, to refer to in its `attachments`. */
export const uploadCollectionOperations: Operations = { 'POST uploads': upload('filename', false) }
