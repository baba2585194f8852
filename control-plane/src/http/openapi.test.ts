import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { catalogue } from '../errors.ts'
import { type Admin, openAdmin } from '../testing/admin.ts'

type Schema = Record<string, unknown>
type Operation = {
  summary?: string
  tags?: string[]
  parameters?: { name: string; in: string; required?: boolean; schema?: Schema }[]
  requestBody?: { required?: boolean; content: Record<string, { schema: Schema }> }
  responses: Record<string, { description: string; content?: Record<string, { schema: Schema }> }>
  security?: unknown
}
type Document = {
  openapi: string
  info: { title: string; version: string; description: string }
  paths: Record<string, Record<string, Operation>>
  components: { schemas: Record<string, Schema>; securitySchemes: Record<string, unknown> }
  security: Record<string, string[]>[]
}

let admin: Admin
let document: Document
beforeAll(async () => {
  admin = await openAdmin(inject('postgres'))
  document = (await admin.call('GET', '/openapi.json', undefined, { authorization: undefined })).json
})
afterAll(() => admin?.[Symbol.asyncDispose]())

/** Calls of architecture section 5 that exist, with the status of success. */
const calls: [method: string, path: string, success: string, body: boolean][] = [
  ['post', '/v1/users', '201', true],
  ['get', '/v1/users', '200', false],
  ['get', '/v1/users/{username}', '200', false],
  ['patch', '/v1/users/{username}', '200', true],
  ['delete', '/v1/users/{username}', '204', false],
  ['post', '/v1/users/{username}/api-keys', '201', true],
  ['get', '/v1/users/{username}/api-keys', '200', false],
  ['delete', '/v1/users/{username}/api-keys/{id}', '204', false],
  ['post', '/v1/users/{username}/api-keys/{id}/rotate', '201', true],
  ['post', '/v1/users/{username}/authorization', '200', true],
  ['delete', '/v1/users/{username}/authorization', '204', false],
  ['post', '/v1/users/{username}/connect-link', '201', false],
  ['post', '/v1/users/{username}/instance/start', '202', false],
  ['post', '/v1/users/{username}/instance/stop', '202', false],
  ['post', '/v1/users/{username}/instance/restart', '202', false],
  ['get', '/v1/users/{username}/instance/logs', '200', false],
  ['get', '/v1/routes', '200', false],
  ['get', '/v1/system', '200', false],
  ['get', '/v1/sessions', '200', false],
  ['get', '/v1/usage', '200', false],
  ['post', '/v1/rollouts', '202', true],
  ['get', '/v1/rollouts', '200', false],
  ['get', '/v1/rollouts/{id}', '200', false],
  ['post', '/v1/rollouts/{id}/pause', '200', false],
  ['post', '/v1/rollouts/{id}/resume', '200', false],
  ['post', '/v1/rollouts/{id}/abort', '200', false],
  ['post', '/v1/system/master-key/rewrap', '202', false],
  ['get', '/v1/audit', '200', false],
]

test('it is OpenAPI 3.1 about this version, behind the admin token', () => {
  expect(document.openapi).toBe('3.1.0')
  expect(document.info).toMatchObject({ title: 'sdp-mcp admin API', version: '1.2.3' })
  expect(document.components.securitySchemes).toEqual({ adminToken: { type: 'http', scheme: 'bearer' } })
  expect(document.security).toEqual([{ adminToken: [] }])
})

test('it describes each call that exists, and nothing else', () => {
  const described = Object.entries(document.paths).flatMap(([path, operations]) =>
    Object.keys(operations).map(method => `${method} ${path}`),
  )
  expect(described.sort()).toEqual(calls.map(([method, path]) => `${method} ${path}`).sort())
})

describe.each(calls)('%s %s', (method, path, success, body) => {
  const operation = () => document.paths[path]![method]!

  test('has a summary, a tag, and each part of its path', () => {
    expect(operation().summary).toMatch(/^[A-Z].{5,}/)
    expect(operation().tags).toHaveLength(1)
    const inPath = [...path.matchAll(/\{(\w+)\}/g)].map(match => match[1])
    const parameters = operation().parameters ?? []
    expect(parameters.filter(one => one.in === 'path').map(one => one.name)).toEqual(inPath)
    for (const one of parameters) {
      expect(one.schema).toHaveProperty('type')
      if (one.in === 'path') expect(one.required).toBe(true)
      if (one.in === 'query') expect(one.required ?? false).toBe(false)
    }
  })

  test('describes success, and what every failure looks like', () => {
    const { responses } = operation()
    expect(Object.keys(responses).sort()).toEqual([success, 'default'].sort())
    for (const { description } of Object.values(responses))
      expect(description).toMatch(/^(OK|Created|Accepted|No Content|It failed)$/)
    if (success === '204') expect(responses[success]!.content).toBeUndefined()
    else {
      const content = responses[success]!.content!
      const [type] = Object.keys(content)
      expect(type).toBe(path.endsWith('/logs') ? 'text/plain' : 'application/json')
      expect(content[type!]!.schema).toMatchObject({ type: path.endsWith('/logs') ? 'string' : 'object' })
    }
    expect(responses.default!.content).toEqual({
      'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } },
    })
  })

  test(`takes ${body ? 'a' : 'no'} body`, () => {
    if (!body) return expect(operation().requestBody).toBeUndefined()
    const schema = operation().requestBody!.content['application/json']!.schema
    expect(schema).toMatchObject({ type: 'object', additionalProperties: false })
    expect(Object.keys(schema.properties as object).length).toBeGreaterThan(0)
  })
})

test('a problem is described as it is answered', async () => {
  const schema = document.components.schemas.Problem as { required: string[]; properties: Record<string, Schema> }
  expect(schema.required.sort()).toEqual(['code', 'detail', 'status', 'title', 'type'])
  expect(schema.properties.code).toMatchObject({ enum: Object.keys(catalogue) })
  const { json } = await admin.call('POST', '/v1/users', { username: 'A' })
  for (const field of Object.keys(json)) expect(schema.properties).toHaveProperty(field)
})

test('each reference leads somewhere, and every schema is a JSON Schema', () => {
  const types = ['object', 'array', 'string', 'number', 'integer', 'boolean', 'null']
  const seen: string[] = []
  const walk = (value: unknown, path: string): void => {
    if (Array.isArray(value)) value.forEach((one, index) => void walk(one, `${path}/${index}`))
    else if (typeof value === 'object' && value !== null) {
      for (const [key, one] of Object.entries(value)) {
        if (key === '$ref') {
          const target = String(one)
            .slice(2)
            .split('/')
            .reduce<unknown>((at, step) => (at as Record<string, unknown>)?.[step], document)
          expect(target, `${path}: ${one}`).toBeDefined()
          seen.push(String(one))
        }
        if (key === 'type' && !path.endsWith('/properties') && path.includes('schema'))
          for (const type of [one].flat()) expect(types, `${path}/type`).toContain(type)
        // of OpenAPI 3.0, no longer known
        expect(['nullable', 'exclusiveMinimum:true'], path).not.toContain(key)
        walk(one, `${path}/${key}`)
      }
    }
  }
  walk(document, '')
  expect(seen.length).toBeGreaterThan(10)
})

test('what must stay secret has no example and no default', () => {
  const text = JSON.stringify(document)
  expect(text).not.toMatch(/sdpmcp_[\w-]{10}/)
  expect(text).not.toContain('"default":"1000.')
})

test('the description of POST /v1/users is that of the architecture', () => {
  const operation = document.paths['/v1/users']!.post!
  const body = operation.requestBody!.content['application/json']!.schema as {
    required: string[]
    properties: Record<string, Schema>
  }
  expect(body.required).toEqual(['username'])
  expect(Object.keys(body.properties).sort()).toEqual([
    'displayName',
    'email',
    'readOnly',
    'role',
    'sdp',
    'toolsets',
    'username',
  ])
  const sdp = body.properties.sdp as { properties: Record<string, Schema> }
  expect(Object.keys(sdp.properties).sort()).toEqual([
    'accountsUrl',
    'baseUrl',
    'clientId',
    'clientSecret',
    'dataCenter',
    'grantCode',
    'portal',
    'refreshToken',
  ])
  expect(operation.parameters).toEqual([expect.objectContaining({ name: 'prefer', in: 'header' })])
  const created = operation.responses['201']!.content!['application/json']!.schema as { required: string[] }
  expect(created.required.sort()).toEqual(['apiKey', 'claudeCode', 'endpoints', 'user'])
})

test('it is readable at /docs, without anything from another host', async () => {
  const page = await admin.call('GET', '/docs', undefined, { authorization: undefined })
  const landed = page.status === 302 ? await admin.call('GET', String(page.headers.location)) : page
  expect(landed.status).toBe(200)
  expect(landed.headers['content-type']).toContain('text/html')
  expect(landed.text).not.toMatch(/(src|href)="https?:/)
  for (const asset of ['/docs/static/swagger-ui.css', '/docs/static/swagger-ui-bundle.js', '/docs/json'])
    expect((await admin.call('GET', asset)).status, asset).toBe(200)
})
