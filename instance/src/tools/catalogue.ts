import { addAttachment } from './core/add-attachment.ts'
import { addNote } from './core/add-note.ts'
import { addTask } from './core/add-task.ts'
import { assignRequest } from './core/assign-request.ts'
import { closeRequest } from './core/close-request.ts'
import { createRequest } from './core/create-request.ts'
import { findPeople } from './core/find-people.ts'
import { getAttachment } from './core/get-attachment.ts'
import { getFormFields } from './core/get-form-fields.ts'
import { getMyContext } from './core/get-my-context.ts'
import { getQueueSummary } from './core/get-queue-summary.ts'
import { getRequest } from './core/get-request.ts'
import { getRequestActivity } from './core/get-request-activity.ts'
import { getSolution } from './core/get-solution.ts'
import { listFieldOptions } from './core/list-field-options.ts'
import { listMyApprovals } from './core/list-my-approvals.ts'
import { logTime } from './core/log-time.ts'
import { replyToRequester } from './core/reply-to-requester.ts'
import { resolveRequest } from './core/resolve-request.ts'
import { searchRequests } from './core/search-requests.ts'
import { searchSolutions } from './core/search-solutions.ts'
import { updateRequest } from './core/update-request.ts'
import { updateTask } from './core/update-task.ts'
import type { Tool } from './define.ts'

/** Every tool there is, in the order clients see them. */
export const catalogue: readonly Tool[] = [
  getMyContext,
  getQueueSummary,
  searchRequests,
  getRequest,
  getRequestActivity,
  listFieldOptions,
  getFormFields,
  findPeople,
  searchSolutions,
  getSolution,
  getAttachment,
  listMyApprovals,
  createRequest,
  updateRequest,
  assignRequest,
  addNote,
  replyToRequester,
  resolveRequest,
  closeRequest,
  logTime,
  addTask,
  updateTask,
  addAttachment,
]
