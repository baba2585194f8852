import type { FastifyRequest } from 'fastify'
import type { UploadedFile } from './call.ts'
import { fail } from './failure.ts'

export interface Input {
  /** Parsed `input_data`; undefined when none was sent. */
  data: Record<string, unknown> | undefined
  source: 'query' | 'body'
  /** Other parameters of query and form. */
  form: Record<string, string>
  files: UploadedFile[]
}

/**
 * Reads `input_data` from the body (form or multipart) or the query string, the body first (docs/sdp-api.md 1.4). A JSON
 * body is not SDP's form and is ignored.
 *
 * @throws ApiFailure 4001 when it is no JSON object
 */
export async function readInput(request: FastifyRequest): Promise<Input> {
  const form: Record<string, string> = Object.fromEntries(new URLSearchParams(request.url.split('?')[1] ?? ''))
  const files: UploadedFile[] = []
  const fromQuery = form.input_data
  const contentType = request.headers['content-type'] ?? ''
  const body = Buffer.isBuffer(request.body) ? request.body : Buffer.alloc(0)

  if (contentType.includes('application/x-www-form-urlencoded')) {
    for (const [name, value] of new URLSearchParams(body.toString('utf8'))) form[name] = value
  } else if (contentType.includes('multipart/form-data')) {
    await readMultipart(body, contentType, form, files)
  }

  const { input_data: text, ...others } = form
  const data = text === undefined || text === '' ? undefined : parseObject(text)
  return { data, source: text === fromQuery ? 'query' : 'body', form: others, files }
}

function parseObject(text: string): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    throw fail.unparsableJson('input_data')
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw fail.unparsableJson('input_data')
  return value as Record<string, unknown>
}

async function readMultipart(
  body: Buffer,
  contentType: string,
  form: Record<string, string>,
  files: UploadedFile[],
): Promise<void> {
  let parts: FormData
  try {
    parts = await new Response(new Uint8Array(body), { headers: { 'content-type': contentType } }).formData()
  } catch {
    throw fail.refused('The multipart body cannot be read')
  }
  for (const [part, value] of parts) {
    if (typeof value === 'string') form[part] = value
    else {
      const content = Buffer.from(await value.arrayBuffer())
      files.push({ part, name: value.name, contentType: value.type || 'application/octet-stream', content })
    }
  }
}
