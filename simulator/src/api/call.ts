import type { Module } from '../modules/module.ts'
import type { Portal, StoredRecord } from '../state.ts'
import type { World } from '../world.ts'

export interface UploadedFile {
  /** Name of the form part. */
  part: string
  name: string
  contentType: string
  content: Buffer
}

/** Who is calling: the portal's user row with the permissions of the role. */
export interface Caller {
  row: StoredRecord
  isTechnician: boolean
  isAdmin: boolean
  /** Which tickets the role shows. */
  view: 'all' | 'group' | 'own'
  mayDelete: boolean
  groupIds: string[]
}

/** One API call, resolved: everything a verb or an operation needs. */
export interface Call {
  world: World
  portal: Portal
  caller: Caller
  method: string
  module: Module
  /** The record addressed; undefined for a collection. */
  record?: StoredRecord
  /** Modules and records on the way to the addressed module, outermost first. */
  trail: Step[]
  /** Path parameters of an operation. */
  params: Record<string, string>
  /** Parsed `input_data`; undefined when none was sent. */
  input: Record<string, unknown> | undefined
  /** Whether `input_data` came in the query string or in the body. */
  inputSource: 'query' | 'body'
  /** Other parameters of query and form. */
  form: Record<string, string>
  files: UploadedFile[]
}

export interface Step {
  module: Module
  record: StoredRecord
}

/** What goes back: JSON with a status, or a file. */
export interface Reply {
  status: number
  body?: unknown
  file?: { name: string; contentType: string; content: Buffer }
}
