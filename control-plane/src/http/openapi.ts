import { STATUS_CODES } from 'node:http'
import type { SwaggerTransformObject } from '@fastify/swagger'
import { z } from 'zod'
import { catalogue } from '../errors.ts'
import { problemType } from '../problem.ts'

const problem = z.object({
  type: z.string().describe('Path of the page about this code, on this listener'),
  title: z.string(),
  status: z.int(),
  detail: z.string().describe('What happened and what to do next'),
  code: z.enum(Object.keys(catalogue) as [string, ...string[]]),
  errors: z
    .array(z.object({ pointer: z.string().describe('JSON pointer, RFC 6901'), detail: z.string() }))
    .optional()
    .describe('Every wrong place of the request'),
})

const methods = ['get', 'post', 'put', 'patch', 'delete'] as const

/** Adds to each operation what all of them answer when they fail: a problem of RFC 9457. */
export const describeProblems: SwaggerTransformObject = document => {
  if (!('openapiObject' in document)) throw new Error('the document is not OpenAPI 3')
  const { openapiObject } = document
  const { $schema: _, ...schema } = z.toJSONSchema(problem)
  const content = { [problemType]: { schema: { $ref: '#/components/schemas/Problem' } } }
  for (const path of Object.values(openapiObject.paths ?? {}))
    for (const method of methods) {
      const operation = path?.[method]
      if (!operation) continue
      for (const [status, response] of Object.entries(operation.responses ?? {}))
        if ('description' in response) response.description = STATUS_CODES[status] ?? response.description
      operation.responses = { ...operation.responses, default: { description: 'It failed', content } }
    }
  return {
    ...openapiObject,
    components: {
      ...openapiObject.components,
      schemas: { ...openapiObject.components?.schemas, Problem: schema },
    },
  } as typeof openapiObject
}
