import { z } from 'zod'

/** Parameters that mean the same in every tool; the model learns them once. */
export const requestId = z.string().min(1).describe('Ticket: number (57, #57, RE-57), long id or portal URL')
export const dryRun = z.boolean().optional().describe('Only show what would be sent')
export const page = z.int().min(1).max(10_000).optional().describe('From 1')
export const limit = z.int().min(1).max(50).optional().describe('Rows, default 20')
export const person = z.string().min(1).describe('me, e-mail, name or id')
export const date = z.string().min(1)
export const text = z.string()
export const optionName = z.string().min(1)

export const defaultLimit = 20

/** `{"field key or label": value}` for what has no parameter of its own; keys are checked against the form. */
export const customFields = z
  .record(z.string(), z.unknown())
  .optional()
  .describe('Additional and other fields by key; see get_form_fields')

/** What tasks, worklogs and attachments hang on. */
export const parentModules = ['request', 'problem', 'change', 'release', 'project', 'milestone'] as const
export type ParentModule = (typeof parentModules)[number]
export const parentModule = z.enum(parentModules).optional().describe('Default request')
export const parentId = z.string().min(1).describe('Ticket, or id of the record in module')
export const projectId = z.string().optional().describe('For a milestone')
