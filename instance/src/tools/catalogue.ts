import { sdpApiGet } from './advanced/sdp-api-get.ts'
import { sdpApiWrite } from './advanced/sdp-api-write.ts'
import { createAnnouncement } from './announcements/create-announcement.ts'
import { listAnnouncements } from './announcements/list-announcements.ts'
import { decideApproval } from './approvals/decide-approval.ts'
import { createAsset } from './assets/create-asset.ts'
import { getAsset } from './assets/get-asset.ts'
import { linkAssets } from './assets/link-assets.ts'
import { searchAssets } from './assets/search-assets.ts'
import { updateAsset } from './assets/update-asset.ts'
import { createChange } from './changes/create-change.ts'
import { getChange } from './changes/get-change.ts'
import { getChangeCalendar } from './changes/get-change-calendar.ts'
import { linkToChange } from './changes/link-to-change.ts'
import { searchChanges } from './changes/search-changes.ts'
import { submitChange } from './changes/submit-change.ts'
import { updateChange } from './changes/update-change.ts'
import { getCi } from './cmdb/get-ci.ts'
import { relateCis } from './cmdb/relate-cis.ts'
import { searchCis } from './cmdb/search-cis.ts'
import { updateCi } from './cmdb/update-ci.ts'
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
import { deleteAsset } from './destructive/delete-asset.ts'
import { deleteNote } from './destructive/delete-note.ts'
import { deleteTask } from './destructive/delete-task.ts'
import { deleteWorklog } from './destructive/delete-worklog.ts'
import { mergeRequests } from './destructive/merge-requests.ts'
import { restoreRequest } from './destructive/restore-request.ts'
import { trashRequest } from './destructive/trash-request.ts'
import { createProblem } from './problems/create-problem.ts'
import { getProblem } from './problems/get-problem.ts'
import { linkRequestsToProblem } from './problems/link-requests-to-problem.ts'
import { searchProblems } from './problems/search-problems.ts'
import { updateProblem } from './problems/update-problem.ts'
import { createProject } from './projects/create-project.ts'
import { getProject } from './projects/get-project.ts'
import { saveMilestone } from './projects/save-milestone.ts'
import { searchProjects } from './projects/search-projects.ts'
import { searchTasks } from './projects/search-tasks.ts'
import { updateProject } from './projects/update-project.ts'
import { getContract } from './purchasing/get-contract.ts'
import { getPurchaseOrder } from './purchasing/get-purchase-order.ts'
import { searchContracts } from './purchasing/search-contracts.ts'
import { searchPurchaseOrders } from './purchasing/search-purchase-orders.ts'
import { createRelease } from './releases/create-release.ts'
import { getRelease } from './releases/get-release.ts'
import { searchReleases } from './releases/search-releases.ts'
import { updateRelease } from './releases/update-release.ts'
import { bulkUpdateRequests } from './requests_extra/bulk-update-requests.ts'
import { editNote } from './requests_extra/edit-note.ts'
import { findSimilarRequests } from './requests_extra/find-similar-requests.ts'
import { getRequestApprovals } from './requests_extra/get-request-approvals.ts'
import { linkRequests } from './requests_extra/link-requests.ts'
import { requestApproval } from './requests_extra/request-approval.ts'
import { revertChange } from './requests_extra/revert-change.ts'
import { createSolution } from './solutions/create-solution.ts'
import { updateSolution } from './solutions/update-solution.ts'

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
  getRequestApprovals,
  findSimilarRequests,
  linkRequests,
  requestApproval,
  editNote,
  revertChange,
  bulkUpdateRequests,
  decideApproval,
  searchProblems,
  getProblem,
  createProblem,
  updateProblem,
  linkRequestsToProblem,
  searchChanges,
  getChange,
  getChangeCalendar,
  createChange,
  updateChange,
  submitChange,
  linkToChange,
  searchReleases,
  getRelease,
  createRelease,
  updateRelease,
  searchAssets,
  getAsset,
  createAsset,
  updateAsset,
  linkAssets,
  searchCis,
  getCi,
  updateCi,
  relateCis,
  searchProjects,
  getProject,
  searchTasks,
  createProject,
  updateProject,
  saveMilestone,
  createSolution,
  updateSolution,
  searchContracts,
  getContract,
  searchPurchaseOrders,
  getPurchaseOrder,
  listAnnouncements,
  createAnnouncement,
  trashRequest,
  restoreRequest,
  mergeRequests,
  deleteNote,
  deleteWorklog,
  deleteTask,
  deleteAsset,
  sdpApiGet,
  sdpApiWrite,
]
