import { addNote } from './core/add-note.ts'
import { createRequest } from './core/create-request.ts'
import { getMyContext } from './core/get-my-context.ts'
import { getRequest } from './core/get-request.ts'
import { listFieldOptions } from './core/list-field-options.ts'
import { searchRequests } from './core/search-requests.ts'
import { updateRequest } from './core/update-request.ts'
import type { Tool } from './define.ts'

/** Every tool there is, in the order clients see them. */
export const catalogue: readonly Tool[] = [
  getMyContext,
  searchRequests,
  getRequest,
  listFieldOptions,
  createRequest,
  updateRequest,
  addNote,
]
