import type { Session } from './desk.ts'
import { confirmed } from './support.ts'

/** Records for tests that need one of each kind and may spoil it. */
export type Fixtures = Awaited<ReturnType<typeof createFixtures>>

type Args = Record<string, unknown>

/** @param session - of a person who may do everything */
export async function createFixtures(session: Session) {
  let serial = 0
  const create = async (tool: string, args: Args, key: string) => String((await session.ok(tool, args))[key])
  const product = (await session.ok('list_field_options', { field: 'product' })).options[0].name as string
  const { cis } = await session.ok('search_cis', { ci_type: 'server' })
  const first = async (tool: string, list: string) => (await session.ok(tool))[list][0].id as string
  const fixtures = {
    product,
    ci: cis[0].id as string,
    otherCi: cis[1].id as string,
    contract: await first('search_contracts', 'contracts'),
    order: await first('search_purchase_orders', 'purchase_orders'),
    next: () => `Fixture ${++serial}`,
    ticket: () =>
      create(
        'create_request',
        { subject: fixtures.next(), requester: 'Ana Ferreira', allow_duplicate: true },
        'number',
      ),
    problem: () => create('create_problem', { title: fixtures.next() }, 'number'),
    change: () => create('create_change', { title: fixtures.next() }, 'number'),
    release: () => create('create_release', { title: fixtures.next() }, 'number'),
    project: () => create('create_project', { title: fixtures.next() }, 'number'),
    solution: () => create('create_solution', { title: fixtures.next(), text: 'x', topic: 'workplace' }, 'id'),
    note: (request_id: string) => create('add_note', { request_id, text: 'x' }, 'note_id'),
    task: (request_id: string) => create('add_task', { request_id, title: 'x' }, 'task_id'),
    worklog: (request_id: string) => create('log_time', { request_id, minutes: 5 }, 'worklog_id'),
    async asset() {
      const name = fixtures.next()
      await session.ok('create_asset', { name, product })
      return name
    },
    async attached() {
      const parent_id = await fixtures.ticket()
      await session.ok('add_attachment', { parent_id, name: 'a.txt', content: 'hello' })
      return { parent_id, attachment_id: 'a.txt' }
    },
    async trashed() {
      const { id } = await session.ok('get_request', { request_id: await fixtures.ticket() })
      await confirmed(session, 'trash_request', { request_id: id })
      return id as string
    },
    async waitingForMe() {
      const number = await fixtures.ticket()
      await confirmed(session, 'request_approval', { request_id: number, approvers: ['me'] })
      return number
    },
  }
  return fixtures
}
