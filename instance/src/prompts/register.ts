import { completable } from '@modelcontextprotocol/sdk/server/completable.js'
import type { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { z } from 'zod'
import type { Services } from '../services.ts'
import type { Session } from '../session.ts'
import { type Prompt, prompts } from './catalogue.ts'

/** Registers the prompts whose tools this session may have; scopes are asked when one is used. */
export function registerPrompts(mcp: McpServer, session: Session, services: Services): void {
  for (const prompt of prompts) {
    if (!prompt.needs.every(tool => session.mayOffer(tool))) continue
    const { name, title, description } = prompt
    mcp.registerPrompt(name, { title, description, argsSchema: argsSchema(prompt, services) }, args => ({
      description,
      messages: [{ role: 'user', content: { type: 'text', text: prompt.text(args) } }],
    }))
  }
}

function argsSchema({ args }: Prompt, services: Services): Record<string, z.ZodType<string | undefined>> {
  const entries = Object.entries(args).map(([key, { kind, description, isOptional }]) => {
    const plain = z.string().max(500).describe(description)
    const field = isOptional ? plain.optional() : plain
    if (kind === 'ticket') return [key, completable(field, typed => services.completions.tickets(typed ?? ''))]
    if (kind === 'person') return [key, completable(field, typed => services.completions.people(typed ?? ''))]
    return [key, field]
  })
  return Object.fromEntries(entries)
}
