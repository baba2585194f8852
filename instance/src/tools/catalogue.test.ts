import { AjvJsonSchemaValidator } from '@modelcontextprotocol/sdk/validation/ajv'
import { describe, expect, it } from 'vitest'
import { scopesFor, toolsets } from '../contract.ts'
import { isObject, type Json } from '../sdp/json.ts'
import { catalogue } from './catalogue.ts'
import { renderDocument, toolsPage } from './document.ts'

const characters = (of: typeof catalogue) => JSON.stringify({ tools: of.map(tool => tool.published) }).length
const core = catalogue.filter(({ toolset }) => toolset === 'core')

describe('the catalogue', () => {
  it('has the tools that were specified', () => {
    expect(core).toHaveLength(23)
    expect(catalogue).toHaveLength(79)
    expect(catalogue.filter(({ effect }) => effect === 'read')).toHaveLength(34)
    expect(new Set(catalogue.map(({ name }) => name)).size).toBe(79)
    for (const toolset of toolsets) {
      const count = catalogue.filter(tool => tool.toolset === toolset).length
      expect(count, toolset).toBeGreaterThan(0)
    }
  })

  it('fits the token budget: core 8k, everything 24k, at four characters a token', () => {
    expect(characters(core) / 4).toBeLessThanOrEqual(8_000)
    expect(characters(catalogue) / 4).toBeLessThanOrEqual(24_000)
    const technician = catalogue.filter(({ toolset }) => ['core', 'approvals', 'assets', 'problems'].includes(toolset))
    expect(characters(technician) / 4).toBeLessThanOrEqual(11_000)
  })

  it.each(catalogue.map(tool => [tool.name, tool] as const))('%s is described as a client needs it', (name, tool) => {
    const { published } = tool
    expect(name).toMatch(/^[a-z]+(_[a-z]+)+$/)
    expect(published.title).toBeTruthy()
    expect(published.description.length).toBeLessThanOrEqual(420)
    expect(published.description).toMatch(/\.$/)
    expect(published.annotations).toEqual({
      readOnlyHint: tool.effect === 'read',
      destructiveHint: tool.effect === 'destructive',
      idempotentHint: expect.any(Boolean),
      openWorldHint: expect.any(Boolean),
    })
    expect(published.inputSchema).toMatchObject({ type: 'object', additionalProperties: false })
    // some clients cannot read a union at the root
    for (const key of ['anyOf', 'oneOf', 'allOf', '$ref']) expect(published.inputSchema).not.toHaveProperty(key)
    for (const [parameter, schema] of Object.entries(published.inputSchema.properties as Record<string, Json>)) {
      expect(parameter).toMatch(/^[a-z][a-z_]*$/)
      const words = String(schema.description ?? '').split(/\s+/).length
      expect(words, `${name}.${parameter}`).toBeLessThanOrEqual(12)
      expect(schema, `${name}.${parameter}`).not.toHaveProperty('$ref')
    }
    if (tool.toolset === 'core') expect(published.outputSchema).toMatchObject({ type: 'object' })
    else expect(published.outputSchema).toBeUndefined()
  })

  it('every write has a dry run, or another way to look first', () => {
    for (const { name, effect, published } of catalogue) {
      const parameters = Object.keys(published.inputSchema.properties as Json)
      if (effect === 'read') expect(parameters, name).not.toContain('dry_run')
      else expect(parameters.includes('dry_run') || parameters.includes('mode'), name).toBe(true)
    }
  })

  it('what cannot be undone or reaches other people needs a token or a question', () => {
    for (const { name, effect, published } of catalogue) {
      if (effect !== 'destructive' && !published.annotations.openWorldHint) continue
      const parameters = Object.keys(published.inputSchema.properties as Json)
      expect(parameters.includes('confirm_token') || parameters.includes('plan_token'), name).toBe(true)
    }
  })

  it('shared parameters are spelt and typed the same everywhere', () => {
    const types = new Map<string, Set<string>>()
    for (const { published } of catalogue) {
      for (const [parameter, schema] of Object.entries(published.inputSchema.properties as Record<string, Json>)) {
        types.set(parameter, (types.get(parameter) ?? new Set()).add(String(schema.type)))
      }
    }
    for (const shared of [
      'request_id',
      'technician',
      'page',
      'limit',
      'dry_run',
      'confirm_token',
      'parent_id',
      'custom_fields',
      'total',
    ]) {
      expect([...(types.get(shared) ?? [])], shared).toHaveLength(1)
    }
  })

  it('schemas are valid JSON Schema, and nothing of one customer is in them', () => {
    // what the SDK's own client checks results with
    const validator = new AjvJsonSchemaValidator()
    for (const { name, published } of catalogue) {
      expect(() => validator.getValidator(published.inputSchema), name).not.toThrow()
      if (published.outputSchema)
        expect(() => validator.getValidator(published.outputSchema as Json), name).not.toThrow()
      for (const values of enums(published.inputSchema)) {
        for (const value of values) expect(String(value), name).toMatch(/^[a-z_]+(64)?$|^(POST|PUT|DELETE)$/)
      }
    }
  })

  it('a published tool is made once', () => {
    for (const tool of catalogue) expect(tool.published).toBe(tool.published)
  })

  it('needs only scopes that a person is asked to grant', () => {
    const granted = scopesFor(toolsets, false)
    for (const { name, scopes } of catalogue) {
      for (const scope of scopes) {
        const [module] = scope.split('.')
        expect(
          granted.some(one => one.startsWith(`SDPOnDemand.${module}.`)),
          `${name} ${scope}`,
        ).toBe(true)
      }
    }
  })

  it.each(toolsets)('the schemas of %s change only by decision', async toolset => {
    const published = catalogue.filter(tool => tool.toolset === toolset).map(tool => tool.published)
    await expect(`${JSON.stringify(published, null, 2)}\n`).toMatchFileSnapshot(`schemas/${toolset}.snap`)
  })
})

it('docs/tools.md says what the catalogue says (node instance/src/tools/document.ts writes it)', async () => {
  await expect(renderDocument()).toMatchFileSnapshot(toolsPage)
})

function enums(schema: unknown): unknown[][] {
  if (Array.isArray(schema)) return schema.flatMap(enums)
  if (!isObject(schema)) return []
  return [...(Array.isArray(schema.enum) ? [schema.enum] : []), ...Object.values(schema).flatMap(enums)]
}
