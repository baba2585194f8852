import type { Session } from './desk.ts'
import type { Fixtures } from './fixtures.ts'

type Args = Record<string, unknown>
type Row = {
  /** arguments that succeed; `session` is the one the call is made on */
  works(fixtures: Fixtures, session: Session): Args | Promise<Args>
  /** arguments that a model could mistake and can mend */
  mistake(fixtures: Fixtures): Args | Promise<Args>
  /** what the answer to the mistake tells */
  told: RegExp
}

const missing = '999999'
const nobody = 'nobody-at-all'
const onTicket =
  (more: Args = {}) =>
  async (f: Fixtures) => ({ request_id: await f.ticket(), ...more })
const no = (what: string) => new RegExp(`no ${what}|Nobody called|found no such record`, 'i')

/** One row for each tool there is; a test holds it to the catalogue. */
export const everyTool: Record<string, Row> = {
  get_my_context: row(
    () => ({}),
    () => ({ user: 'bob' }),
    /user: unknown/,
  ),
  get_queue_summary: row(
    () => ({ scope: 'mine' }),
    () => ({ scope: 'my_group' }),
    /my_groups/,
  ),
  search_requests: row(
    () => ({ text: 'vpn' }),
    () => ({ status: ['opne'] }),
    /Open/,
  ),
  get_request: row(
    onTicket({ include: ['description', 'allowed_actions'] }),
    () => ({ request_id: missing }),
    no('ticket'),
  ),
  get_request_activity: row(onTicket(), () => ({ request_id: missing }), no('ticket')),
  list_field_options: row(
    () => ({ field: 'status' }),
    () => ({ field: 'colour' }),
    /field/,
  ),
  get_form_fields: row(
    () => ({}),
    () => ({ module: 'toaster' }),
    /module/,
  ),
  find_people: row(
    () => ({ query: 'alice' }),
    () => ({}),
    /query: is missing/,
  ),
  search_solutions: row(
    () => ({ text: 'vpn' }),
    () => ({ text: 'vpn', topic: 'no such topic' }),
    /topic/,
  ),
  get_solution: row(
    async f => ({ solution_id: await f.solution() }),
    () => ({ solution_id: missing }),
    no('solution'),
  ),
  get_attachment: row(
    f => f.attached(),
    async f => ({ ...(await f.attached()), attachment_id: 'b.txt' }),
    /a\.txt/,
  ),
  list_my_approvals: row(
    () => ({}),
    () => ({ module: 'problem' }),
    /module/,
  ),
  create_request: row(
    f => ({ subject: f.next() }),
    f => ({ subject: f.next(), priority: 'Hihg' }),
    /High/,
  ),
  update_request: row(onTicket({ priority: 'High' }), onTicket({ prioritty: 'High' }), /did you mean priority/),
  assign_request: row(onTicket({ technician: 'me' }), onTicket({ technician: nobody }), no('technician')),
  add_note: row(onTicket({ text: 'x' }), () => ({ request_id: missing, text: 'x' }), no('ticket')),
  reply_to_requester: row(
    onTicket({ text: 'x', mode: 'send' }),
    () => ({ request_id: missing, text: 'x' }),
    no('ticket'),
  ),
  resolve_request: row(onTicket({ resolution: 'x' }), onTicket({ resolution: 'x', status: 'Resovled' }), /Resolved/),
  close_request: row(onTicket({ resolution: 'x' }), onTicket({ closure_code: 'Magic' }), /closure/),
  log_time: row(onTicket({ minutes: 5 }), onTicket({ minutes: -5 }), /minutes/),
  add_task: row(onTicket({ title: 'x' }), onTicket({ title: 'x', owner: nobody }), no('technician')),
  update_task: row(
    async f => {
      const request_id = await f.ticket()
      return { request_id, task_id: await f.task(request_id), percent: 50 }
    },
    onTicket({ task_id: missing, percent: 50 }),
    no('task'),
  ),
  add_attachment: row(
    onTicket({ name: 'a.txt', content: 'x' }),
    onTicket({ name: 'a.exe', content: 'x' }),
    /exe|program/i,
  ),

  get_request_approvals: row(onTicket(), () => ({ request_id: missing }), no('ticket')),
  find_similar_requests: row(
    () => ({ request_id: '12' }),
    () => ({ request_id: missing }),
    no('ticket'),
  ),
  link_requests: row(
    async f => ({ request_id: await f.ticket(), others: [await f.ticket()] }),
    async f => {
      const request_id = await f.ticket()
      return { request_id, others: [request_id] }
    },
    /itself/,
  ),
  request_approval: row(onTicket({ approvers: ['alice'] }), onTicket({ approvers: [nobody] }), no('')),
  edit_note: row(
    async f => {
      const request_id = await f.ticket()
      return { request_id, note_id: await f.note(request_id), text: 'y' }
    },
    onTicket({ note_id: missing, text: 'y' }),
    no('note'),
  ),
  revert_change: row(
    async (f, session) => {
      const request_id = await f.ticket()
      await session.ok('update_request', { request_id, priority: 'High' })
      return { request_id }
    },
    onTicket(),
    /No change of this ticket is remembered/,
  ),
  bulk_update_requests: row(
    async f => ({ requests: [await f.ticket()], priority: 'High' }),
    async f => ({ requests: [await f.ticket()], priority: 'Hihg' }),
    /High/,
  ),
  decide_approval: row(
    async f => ({ parent_id: await f.waitingForMe(), decision: 'approve' }),
    async f => ({ parent_id: await f.waitingForMe(), decision: 'reject' }),
    /needs a reason/,
  ),

  search_problems: row(
    () => ({ text: 'a' }),
    () => ({ status: ['opne'] }),
    /Open/,
  ),
  get_problem: row(
    async f => ({ problem_id: await f.problem() }),
    () => ({ problem_id: missing }),
    no('problem'),
  ),
  create_problem: row(
    f => ({ title: f.next() }),
    f => ({ title: f.next(), priority: 'Hihg' }),
    /High/,
  ),
  update_problem: row(
    async f => ({ problem_id: await f.problem(), root_cause: 'x' }),
    () => ({ problem_id: missing, root_cause: 'x' }),
    no('problem'),
  ),
  link_requests_to_problem: row(
    async f => ({ problem_id: await f.problem(), requests: [await f.ticket()] }),
    async f => ({ problem_id: missing, requests: [await f.ticket()] }),
    no('problem'),
  ),

  search_changes: row(
    () => ({ text: 'a' }),
    () => ({ stage: ['Plannin'] }),
    /Planning/,
  ),
  get_change: row(
    async f => ({ change_id: await f.change() }),
    () => ({ change_id: missing }),
    no('change'),
  ),
  get_change_calendar: row(
    () => ({}),
    () => ({ from: 'today', to: '+200d' }),
    /three months/,
  ),
  create_change: row(
    f => ({ title: f.next() }),
    f => ({ title: f.next(), risk: 'Lwo' }),
    /Low/,
  ),
  update_change: row(
    async f => ({ change_id: await f.change(), roll_out_plan: 'x' }),
    async f => ({ change_id: await f.change(), status: 'Accepted' }),
    /needs a comment/,
  ),
  submit_change: row(
    async f => ({ change_id: await f.change(), comment: 'x' }),
    () => ({ change_id: missing, comment: 'x' }),
    no('change'),
  ),
  link_to_change: row(
    async f => ({ change_id: await f.change(), requests: [await f.ticket()] }),
    async f => ({ change_id: missing, requests: [await f.ticket()] }),
    no('change'),
  ),

  search_releases: row(
    () => ({ text: 'a' }),
    () => ({ release_engineer: nobody }),
    no(''),
  ),
  get_release: row(
    async f => ({ release_id: await f.release() }),
    () => ({ release_id: missing }),
    no('release'),
  ),
  create_release: row(
    f => ({ title: f.next() }),
    f => ({ title: f.next(), risk: 'Lwo' }),
    /Low/,
  ),
  update_release: row(
    async f => ({ release_id: await f.release(), roll_out_plan: 'x' }),
    async f => ({ release_id: await f.release(), status: 'Approved' }),
    /needs a comment/,
  ),

  search_assets: row(
    () => ({ text: 'a' }),
    () => ({ user: nobody }),
    no(''),
  ),
  get_asset: row(
    async f => ({ asset_id: await f.asset() }),
    () => ({ asset_id: 'LT-0000' }),
    no('asset'),
  ),
  create_asset: row(
    f => ({ name: f.next(), product: f.product }),
    f => ({ name: f.next(), product: 'no such product' }),
    /product/,
  ),
  update_asset: row(
    async f => ({ asset_id: await f.asset(), user: 'Ana Ferreira', state: 'in use' }),
    () => ({ asset_id: 'LT-0000', state: 'in use' }),
    no('asset'),
  ),
  link_assets: row(
    async f => ({ request_id: await f.ticket(), assets: [await f.asset()] }),
    onTicket({ assets: ['LT-0000'] }),
    no('asset'),
  ),

  search_cis: row(
    () => ({ ci_type: 'server' }),
    () => ({ ci_type: 'toaster' }),
    /toaster/,
  ),
  get_ci: row(
    f => ({ ci_type: 'server', ci_id: f.ci }),
    () => ({ ci_type: 'server', ci_id: missing }),
    no(''),
  ),
  update_ci: row(
    f => ({ ci_type: 'server', ci_id: f.ci, description: f.next() }),
    () => ({ ci_type: 'server', ci_id: missing, description: 'x' }),
    no(''),
  ),
  relate_cis: row(
    async (f, session) => {
      const relation = { ci_type: 'server', ci_id: f.ci, other_ci_id: f.otherCi, relation: 'Connected to' }
      await session.ok('relate_cis', { ...relation, remove: true })
      return relation
    },
    f => ({ ci_type: 'server', ci_id: missing, other_ci_id: f.otherCi, relation: 'Connected to' }),
    no('CI'),
  ),

  search_projects: row(
    () => ({ text: 'a' }),
    () => ({ owner: nobody }),
    no(''),
  ),
  get_project: row(
    async f => ({ project_id: await f.project() }),
    () => ({ project_id: missing }),
    no('project'),
  ),
  search_tasks: row(
    () => ({ text: 'a' }),
    () => ({ owner: nobody }),
    no(''),
  ),
  create_project: row(
    f => ({ title: f.next() }),
    f => ({ title: f.next(), owner: nobody }),
    no(''),
  ),
  update_project: row(
    async f => ({ project_id: await f.project(), percent: 20 }),
    () => ({ project_id: missing, percent: 20 }),
    no('project'),
  ),
  save_milestone: row(
    async f => ({ project_id: await f.project(), title: 'x' }),
    () => ({ project_id: missing, title: 'x' }),
    no('project'),
  ),

  create_solution: row(
    f => ({ title: f.next(), text: 'x', topic: 'workplace' }),
    f => ({ title: f.next(), text: 'x', topic: 'no such topic' }),
    /topic/,
  ),
  update_solution: row(
    async f => ({ solution_id: await f.solution(), text: 'y' }),
    () => ({ solution_id: missing, text: 'y' }),
    no('solution'),
  ),

  search_contracts: row(
    () => ({}),
    () => ({ vendor: ['no such vendor'] }),
    /vendor/,
  ),
  get_contract: row(
    f => ({ contract_id: f.contract }),
    () => ({ contract_id: missing }),
    no('contract'),
  ),
  search_purchase_orders: row(
    () => ({}),
    () => ({ vendor: ['no such vendor'] }),
    /vendor/,
  ),
  get_purchase_order: row(
    f => ({ purchase_order_id: f.order }),
    () => ({ purchase_order_id: missing }),
    no(''),
  ),

  list_announcements: row(
    () => ({}),
    () => ({ limit: 0 }),
    /limit/,
  ),
  create_announcement: row(
    f => ({ title: f.next(), text: 'x', to: '+1d' }),
    f => ({ title: f.next(), text: 'x', to: 'someday' }),
    /someday/,
  ),

  trash_request: row(onTicket(), () => ({ request_id: missing }), no('ticket')),
  restore_request: row(
    async f => ({ request_id: await f.trashed() }),
    () => ({ request_id: missing }),
    no(''),
  ),
  merge_requests: row(
    async f => ({ request_id: await f.ticket(), others: [await f.ticket()] }),
    async f => {
      const request_id = await f.ticket()
      return { request_id, others: [request_id] }
    },
    /itself/,
  ),
  delete_note: row(
    async f => {
      const request_id = await f.ticket()
      return { request_id, note_id: await f.note(request_id) }
    },
    onTicket({ note_id: missing }),
    no('note'),
  ),
  delete_worklog: row(
    async f => {
      const request_id = await f.ticket()
      return { request_id, worklog_id: await f.worklog(request_id) }
    },
    onTicket({ worklog_id: missing }),
    no('worklog'),
  ),
  delete_task: row(
    async f => {
      const request_id = await f.ticket()
      return { request_id, task_id: await f.task(request_id) }
    },
    onTicket({ task_id: missing }),
    no('task'),
  ),
  delete_asset: row(
    async f => ({ asset_id: await f.asset() }),
    () => ({ asset_id: 'LT-0000' }),
    no('asset'),
  ),

  sdp_api_get: row(
    () => ({ path: '/requests' }),
    () => ({ path: '/portals' }),
    /path|module/,
  ),
  sdp_api_write: row(
    f => ({ method: 'POST', path: '/requests', input_data: { request: { subject: f.next() } } }),
    () => ({ method: 'PUT', path: '/priorities/1', input_data: { priority: { name: 'x' } } }),
    /path|module/,
  ),
}

function row(works: Row['works'], mistake: Row['mistake'], told: RegExp): Row {
  return { works, mistake, told }
}
