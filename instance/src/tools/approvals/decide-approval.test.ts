import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Desk, type Session, startDesk } from '../../testing/desk.ts'
import { confirmed, writesOf } from '../../testing/support.ts'

let desk: Desk
let carol: Session
let frank: Session
beforeAll(async () => {
  desk = await startDesk()
  carol = await desk.connect(await desk.context('carol'))
  frank = await desk.connect(await desk.context('frank'))
})
afterAll(() => desk[Symbol.asyncDispose]())

let serial = 0
async function waiting(requester: string): Promise<string> {
  const { number } = await carol.ok('create_request', { subject: `Licence ${++serial}`, requester })
  await confirmed(carol, 'request_approval', { request_id: number, approvers: ['frank'] })
  return number
}

it('what waits for me is listed, and decided only after consent', async () => {
  const number = await waiting('Ana Ferreira')
  const { approvals } = await frank.ok('list_my_approvals')
  expect(approvals).toContainEqual(expect.objectContaining({ number, status: 'Pending Approval' }))
  const before = writesOf(desk).length
  const preview = await frank.ok('decide_approval', { parent_id: number, decision: 'approve' })
  expect(preview).toMatchObject({ done: false, preview: { decision: 'approve', requester: 'Ana Ferreira' } })
  expect(writesOf(desk).length).toBe(before)
  const decided = await confirmed(frank, 'decide_approval', {
    request_id: number,
    decision: 'approve',
    comment: 'fine',
  })
  expect(decided).toMatchObject({ done: true, status: 'Approved' })
  expect(await frank.fails('decide_approval', { parent_id: number, decision: 'approve' })).toContain('Nothing waits')
})

it('a rejection needs a reason', async () => {
  const number = await waiting('Ana Ferreira')
  expect(await frank.fails('decide_approval', { parent_id: number, decision: 'reject' })).toContain('needs a reason')
  expect(
    await confirmed(frank, 'decide_approval', { parent_id: number, decision: 'reject', comment: 'no budget' }),
  ).toMatchObject({ status: 'Rejected' })
})

it('nobody approves their own request, and nobody for another', async () => {
  const own = await waiting('frank@northwind.example')
  expect(await frank.fails('decide_approval', { parent_id: own, decision: 'approve' })).toContain('your own request')
  const number = await waiting('Ana Ferreira')
  expect(await carol.fails('decide_approval', { parent_id: number, decision: 'approve' })).toContain(
    'Only the approver',
  )
})

it('changes are decided too', async () => {
  const { approvals } = await carol.ok('list_my_approvals', { module: 'change' })
  const { number } = approvals[0]
  expect(
    await confirmed(carol, 'decide_approval', { module: 'change', parent_id: number, decision: 'approve' }),
  ).toMatchObject({ done: true, status: 'Approved' })
})
